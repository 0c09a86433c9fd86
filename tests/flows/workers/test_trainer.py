"""What the trainer makes of a policy's source."""

from pathlib import Path

from flows.workers.trainer import TrainerWorker
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.gguf_file import write_gguf
from support.recipes import TINY
from support.tiny import tiny_llama, tiny_tokenizer


def trainer(root: str, run: str, path: Path, scratch: Path) -> TrainerWorker:
    recipe = Recipe.model_validate({**TINY, "policy": {"source": "pretrained", "path": str(path)}})
    scratch.mkdir(exist_ok=True)
    return TrainerWorker(root=root, run=run, recipe=recipe.model_dump(mode="json"), scratch=str(scratch))


def test_a_gguf_file_is_dequantised_once_for_all_runs_of_a_root(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_tokenizer().save_pretrained(model)
    write_gguf(tiny_llama(tmp_path / "source"), model / "tiny.gguf")
    store = Store.open(tmp_path / "root")
    made = []
    for run in ("a", "b"):
        store.create_run(run, {})
        files, report = trainer(store.root, run, model, tmp_path / run).prepare_policy()
        made.append(files)
        assert report == {"source": str(model)}
    assert made[0] == made[1]
    assert all(file.path.startswith("shared/dequantised/") for file in made[0])
