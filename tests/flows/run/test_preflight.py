"""What stops a run before its workers, its scheduler and torch are there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.host import allotment
from flows.registry.recipes import parse_recipe
from flows.registry.resume import header
from flows.run.preflight import preflight
from flows.workers.initial_policy import DEQUANTISED
from flows.workers.references import TrialPrompt
from pipeline.errors import ConfigError, DataError
from storage.log.store import Store
from storage.tables.checkpoints import stage_shared
from support.recipes import TINY

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 100,
    "intermediate_size": 128, "max_position_embeddings": 64,
}  # fmt: skip


def looked_at(
    directory: Path, config: Any = CONFIG, rows: int = 40, column: str | None = None, **changes: Any
) -> tuple[TrialPrompt | None, list[str]]:
    """Looks at the tiny recipe with a pretrained policy of this configuration and a file of so many prompts."""
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    prompts = directory / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Number {row}", "answer": null}}\n' for row in range(rows)))
    recipe = parse_recipe({
        **TINY, "policy": {"source": "pretrained", "path": str(directory)},
        "prompts": {"source": "jsonl", "path": str(prompts), "reference_column": column}, **changes,
    })  # fmt: skip
    store = Store.open(directory / "root")
    run = store.create_run(recipe.name, header(recipe))
    said: list[str] = []
    return preflight(store, run, recipe, 2, said.append), said


def test_what_can_be_run_gives_a_prompt_to_try_the_judges_on(tmp_path: Path) -> None:
    trial, said = looked_at(tmp_path)
    assert trial is not None
    assert trial.text == "Number 0"
    assert [line.partition(" ")[0] for line in said] == ["on", "memory"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"rows": 8}, ConfigError, "evaluation.prompts 8 leaves none of the 8 different prompts"),
        ({"rows": 19}, ConfigError, "prompts_per_round is 12, but there are 11 training prompts"),
        ({"config": "{"}, ConfigError, "config.json is not JSON"),
        ({"config": "[]"}, ConfigError, "config.json is no mapping"),
        ({"sampling": {**TINY["sampling"], "context": 65}}, ConfigError, "sampling.context 65 .* 64 .max_position"),
        ({"sampling": {**TINY["sampling"], "max_tokens": 64}}, ConfigError, "max_tokens 64 leaves no room"),
        (
            {"sampling": {**TINY["sampling"], "engine": "vllm"}, "config": {**CONFIG, "head_dim": 48}},
            ConfigError,
            "heads of .* are 48 wide, and vLLM on a CPU takes 32, 64",
        ),
        ({"judge": {"kind": "exact_answer"}, "column": "answer"}, DataError, "has no reference answer"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        looked_at(tmp_path, **changes)


def test_a_first_checkpoint_that_may_be_there_is_not_asked_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF file's, once any was dequantised in this root; the two adapters of a rank of 1 fit."""
    model = tmp_path / "SmolLM2-135M.gguf"  # whose size is known by its name
    model.touch()
    policy, adapter = {"source": "pretrained", "path": str(model)}, {**TINY["update"], "lora": {"rank": 1}}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=5e6))
    with pytest.raises(ConfigError, match=r"the weights of 2 rounds of this recipe take 0\.54 GB"):
        looked_at(tmp_path, policy=policy, update=adapter)
    copies = stage_shared(Store.open(tmp_path / "root"), DEQUANTISED, "ab" * 32)
    with copies as staged:
        (staged.path / "model.safetensors").touch()
    assert "(may be too little)" in looked_at(tmp_path, name="s", policy=policy, update=adapter)[1][1]


def test_a_tolerance_of_float32_in_bfloat16_is_told_of(tmp_path: Path) -> None:
    update = {**TINY["update"], "precision": "bfloat16"}
    _, said = looked_at(tmp_path, update=update, sampling={**TINY["sampling"], "handover_tolerance": 1e-3})
    assert said[0].startswith("sampling.handover_tolerance 0.001 is what float32 keeps to; the sampler is transformers")


@pytest.mark.parametrize(
    ("trainer", "precision", "told"),
    [("cuda:1", {"precision": "float32"}, True), ("cuda", {}, False), ("cpu", {"precision": "float32"}, False)],
)
def test_float32_on_a_gpu_is_told_of(tmp_path: Path, trainer: str, precision: dict[str, str], told: bool) -> None:
    update = {**TINY["update"], **precision}
    _, said = looked_at(tmp_path, update=update, devices={"trainer": trainer})
    assert said[0].startswith(f"update.precision is float32 and devices.trainer '{trainer}'") == told


@pytest.mark.parametrize(("fast", "told"), [(True, True), (False, False)])
def test_so_it_is_if_auto_comes_to_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, told: bool
) -> None:
    monkeypatch.setattr(allotment, "multiplies_bfloat16", lambda: fast)
    own = {**TINY["sampling"], "engine": "vllm", "precision": "auto", "handover_tolerance": 1e-3}
    _, said = looked_at(tmp_path, sampling=own)
    assert any("the sampler is vllm on cpu in bfloat16" in line for line in said) == told


def test_it_imports_nothing_that_is_heavy() -> None:
    heavy = "('torch', 'transformers', 'prefect')"
    code = f"import sys, flows.run.start; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
