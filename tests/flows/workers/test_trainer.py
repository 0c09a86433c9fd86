"""What the trainer makes of a policy's source."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.workers.references import PreferenceShard, UpdateInputs
from flows.workers.trainer import TrainerWorker
from pipeline.data.corpora.film_reviews import FilmReviews
from pipeline.model.checkpoint_files import stored_dtype
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy, save_policy
from pipeline.packing.packing import TokenGroup
from pipeline.recipe import Recipe
from pipeline.records import CANDIDATES, PREFERENCES, PROMPTS, to_table
from storage.log.store import Store
from storage.tables.checkpoints import local_directory, stage_directory
from storage.tables.shards import read_table, write_table
from support.committed_policy import ANSWER, PROMPT, committed_policy
from support.gguf_file import write_gguf
from support.recipes import TINY
from support.tiny import THINKING_TEMPLATE, tiny_llama, tiny_tokenizer


def trainer(root: str, run: str, path: Path, scratch: Path, **changes: Any) -> TrainerWorker:
    recipe = Recipe.model_validate({**TINY, "policy": {"source": "pretrained", "path": str(path)}, **changes})
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


BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
LORA = {"lora": {"rank": 4, "alpha": 8}}


@pytest.mark.parametrize(
    ("source", "dtype", "update", "found"),
    [
        (BFLOAT16, None, {}, FLOAT32),  # all weights change
        (BFLOAT16, None, LORA, BFLOAT16),  # none of the base does
        (FLOAT32, None, LORA, FLOAT32),
        (BFLOAT16, "source", {}, BFLOAT16),
        (BFLOAT16, "float32", LORA, FLOAT32),
        (FLOAT32, "bfloat16", {}, BFLOAT16),
    ],
)
def test_the_first_checkpoint_has_the_precision_that_the_recipe_says(
    tmp_path: Path, source: torch.dtype, dtype: str | None, update: dict[str, Any], found: torch.dtype
) -> None:
    model, tokenizer = load_policy(tiny_llama(tmp_path / "tiny"), device="cpu")
    save_policy(model, tokenizer, tmp_path / "model", dtype=source)
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    policy = {"source": "pretrained", "path": str(tmp_path / "model"), "dtype": dtype}
    worker = trainer(
        store.root, "r", tmp_path, tmp_path / "scratch", policy=policy, update=TINY.get("update", {}) | update
    )
    files, _ = worker.prepare_policy()
    first = local_directory(store, tuple(files), tmp_path / "cache")
    assert stored_dtype(first) == found
    kept, _ = load_policy(first, device="cpu")
    for name, weight in model.state_dict().items():
        rounded = weight.bfloat16().float() if BFLOAT16 in (source, found) else weight
        assert torch.equal(kept.state_dict()[name], rounded)


def test_a_gguf_file_is_dequantised_into_the_precision_that_the_recipe_says(tmp_path: Path) -> None:
    """Source is float32 there; the two copies are beside each other, and neither is taken for the other."""
    model = tmp_path / "model"
    tiny_tokenizer().save_pretrained(model)
    write_gguf(tiny_llama(tmp_path / "source"), model / "tiny.gguf")
    store = Store.open(tmp_path / "root")
    found = {}
    for dtype in ("bfloat16", "source", "float32"):
        store.create_run(dtype, {})
        policy = {"source": "pretrained", "path": str(model), "dtype": dtype}
        files, _ = trainer(store.root, dtype, model, tmp_path / dtype, policy=policy).prepare_policy()
        found[dtype] = stored_dtype(local_directory(store, tuple(files), tmp_path / "cache"))
    assert found == {"bfloat16": BFLOAT16, "source": FLOAT32, "float32": FLOAT32}


def test_a_round_saves_the_policy_that_it_has_measured(store: Store, make_worker: Any, tmp_path: Path) -> None:
    """In bfloat16: the checkpoint is the rounded policy, and the probe has its log-probabilities."""
    policy = {"source": "pretrained", "path": "owner/name", "dtype": "bfloat16"}
    worker = make_worker(TrainerWorker, Recipe.model_validate({**TINY, "policy": policy}))
    start = committed_policy(store, 1)
    prompt = {
        "prompt_id": "p", "text": "w1", "messages": None, "token_ids": PROMPT, "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip
    candidates = [
        {"prompt_id": "p", "candidate": k, "token_ids": ids, "text": "w", "logprobs": [-1.0] * len(ids),
         "finish_reason": "stop", "seed": 0, "policy": start.digest}
        for k, ids in enumerate((ANSWER, [9, 8, 2]))
    ]  # fmt: skip
    preference = {
        "prompt_id": "p", "kind": "pair", "candidates": [0, 1], "ranks": None, "scores": [1.0, 0.0], "margin": 1.0,
        "soft_label": None, "reference_logps": [-4.0, -3.0], "token_counts": [len(ANSWER), 3], "rule": "r",
        "drop_reason": None, "policy": start.digest,
    }  # fmt: skip
    tables = {"prompts": ([prompt], PROMPTS), "candidates": (candidates, CANDIDATES)}
    tables["preferences"] = ([preference], PREFERENCES)
    files = {name: (write_table(store, "r", 1, name, to_table(*given)),) for name, given in tables.items()}
    shard = PreferenceShard(files["candidates"], files["preferences"], 1.0)
    inputs = UpdateInputs(start, None, False, files["prompts"], (shard,), (), (), None, (), None, 0.0)
    worker.begin_update(inputs, 1, 0)
    trained = worker.finish_update("unsaved")
    saved = local_directory(store, worker.save_update().files, tmp_path / "cache")
    assert stored_dtype(saved) == BFLOAT16
    model, _ = load_policy(saved, device="cpu")
    (row,) = read_table(store, [trained.probe]).to_pylist()
    assert row["logp"] != row["previous_logp"]
    ((logp,),) = sequence_logps(model, [TokenGroup("p", PROMPT, [ANSWER])], 512)
    assert logp == pytest.approx(row["logp"], abs=1e-5)  # in a pack of its own, sums are added in another order


def test_prompts_are_generated_once_by_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the check before there is a policy, and for the table: both splits, of which no corpus is asked again."""
    asked = []
    generate = FilmReviews.prompts
    monkeypatch.setattr(FilmReviews, "prompts", lambda self, *given: (asked.append(given), generate(self, *given))[1])
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_llama(tmp_path / "model")
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    prompts = {"source": "generated", "corpus": "film_reviews", "train": 20}
    worker = trainer(store.root, "r", tmp_path / "model", tmp_path / "scratch", prompts=prompts)
    trial = worker.check_prompts()
    table = read_table(store, [worker.prepare_prompts(())])
    assert asked == [("train", 20, 7), ("evaluation", 8, 7)]
    assert table["prompt_id"][0].as_py() == trial.prompt_id
    assert table["split"].to_pylist() == ["train"] * 20 + ["evaluation"] * 8


def test_prompts_are_read_once_before_there_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warm start, whose tokenizer comes after the check; a new worker, after a crash, reads them anew."""
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_llama(tmp_path / "model")
    with stage_directory(store, "r", 0, "checkpoint") as staged:
        shutil.copytree(tmp_path / "model", staged.path, dirs_exist_ok=True)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "Number {row}"}}\n' for row in range(30)))
    policy = {"source": "warm_start", "corpus": "film_reviews"}
    given: dict[str, Any] = {"policy": policy, "prompts": {"source": "jsonl", "path": str(file)}}
    first, second = (trainer(store.root, "r", tmp_path, tmp_path / name, **given) for name in ("a", "b"))
    trial = first.check_prompts()
    file.rename(tmp_path / "elsewhere.jsonl")
    assert read_table(store, [first.prepare_prompts(staged.files)]).num_rows == 30
    (tmp_path / "elsewhere.jsonl").rename(file)
    table = read_table(store, [second.prepare_prompts(staged.files)])
    assert trial.prompt_id in table["prompt_id"].to_pylist()


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
    _, report = trainer(
        store.root, "r", model, tmp_path / "scratch", sampling=TINY["sampling"] | sampling
    ).prepare_policy()
    assert (report.get("thought"), report["sampler_precision"]) == (found, "bfloat16")
