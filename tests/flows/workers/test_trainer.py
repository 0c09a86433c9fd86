"""What the trainer makes of a policy's source."""

from pathlib import Path
from typing import Any

import pytest

from flows.workers.trainer import TrainerWorker
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.gguf_file import write_gguf
from support.recipes import TINY
from support.tiny import THINKING_TEMPLATE, tiny_llama, tiny_tokenizer


def trainer(root: str, run: str, path: Path, scratch: Path, **sampling: Any) -> TrainerWorker:
    recipe = Recipe.model_validate({
        **TINY, "policy": {"source": "pretrained", "path": str(path)}, "sampling": {**TINY["sampling"], **sampling},
    })  # fmt: skip
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
        assert report == {"source": str(model), "sampler_precision": "float32"}
    assert made[0] == made[1]
    assert all(file.path.startswith("shared/dequantised/") for file in made[0])


@pytest.mark.parametrize(
    ("template", "given", "found"),
    [
        (THINKING_TEMPLATE, {}, {"begin": "<think>", "end": "</think>"}),
        (None, {}, None),
        (THINKING_TEMPLATE, {"thought": {"begin": "w1", "end": "w2"}}, {"begin": "w1", "end": "w2"}),
    ],
)
def test_what_the_run_keeps_to_is_recorded_with_the_first_checkpoint(
    tmp_path: Path, template: str | None, given: dict[str, Any], found: dict[str, str] | None
) -> None:
    """The marks of thoughts, and the precision that its recipe, which has no ``auto``, says by then."""
    model = tiny_llama(tmp_path / "model", thinking=template)
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    sampling = {"engine": "vllm", "precision": "bfloat16", "context": 64, **given}
    _, report = trainer(store.root, "r", model, tmp_path / "scratch", **sampling).prepare_policy()
    assert (report.get("thought"), report["sampler_precision"]) == (found, "bfloat16")
