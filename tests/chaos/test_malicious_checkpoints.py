"""Checkpoints that want to run code, to reach other files, or to fill the memory: refused, with one clear sentence."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import RondoError
from pipeline.model.checkpoint_files import weight_shapes
from pipeline.model.policy import load_policy, load_tokenizer, load_weights, max_context
from pipeline.model.sampler_copy import sampler_copy
from support.tiny import tiny_llama

FUZZ = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HUGE = 2**40


class Bomb:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_policy(tiny_llama(tmp_path_factory.mktemp("intact") / "model"), device="cpu")[0]


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickle_is_never_loaded(checkpoint: Path, tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / name).write_bytes(pickle.dumps(Bomb(canary)))
    if name.startswith("adapter"):
        (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    for read in (lambda: load_policy(checkpoint, device="cpu"), lambda: weight_shapes(checkpoint)):
        with pytest.raises(RondoError):
            read()
    assert not canary.exists()
    pickle.loads((checkpoint / name).read_bytes())  # noqa: S301 what it would have done
    assert canary.exists()


@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_code_beside_the_weights_is_never_run(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    code = f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n"
    (checkpoint / "evil.py").write_text(code)
    (checkpoint / "custom_generate").mkdir()
    (checkpoint / "custom_generate" / "generate.py").write_text(code)
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    _edit(checkpoint / "config.json", model_type=kind, auto_map=dict.fromkeys(classes, "evil.Evil"))
    _edit(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    for read in (load_tokenizer, max_context, lambda path: load_policy(path, device="cpu")):
        try:
            read(checkpoint)
        except RondoError:
            continue
    if kind == "evil":
        with pytest.raises(RondoError, match="cannot be loaded"):
            load_policy(checkpoint, device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../outside/model.safetensors", "/etc/passwd", "../../etc/passwd", "a/b.safetensors", "model.bin", 7, None]
)
def test_an_index_that_leads_elsewhere_is_refused(checkpoint: Path, tmp_path: Path, name: object) -> None:
    (tmp_path / "outside").mkdir()
    (checkpoint / "model.safetensors").rename(tmp_path / "outside" / "model.safetensors")
    names = weight_shapes(tmp_path / "outside")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        RondoError, match=r"model\.safetensors\.index\.json names .*, which is no safetensors file beside it"
    ):
        load_policy(checkpoint, device="cpu")


def _lying(header: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a header longer than the file": lambda: _lying({}, length=HUGE),
    "the longest header that a number can say": lambda: _lying({}, length=2**64 - 1),
    "no JSON": lambda: struct.pack("<Q", 4) + b"\xff\xfe{]",
    "deep JSON": lambda: struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a tensor beyond the file": lambda: _lying({"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
    "a shape that the bytes do not have": lambda: _lying(
        {"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a shape that overflows": lambda: _lying(
        {"x": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}
    ),
    "backward offsets": lambda: _lying({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "tensors that overlap": lambda: _lying(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "xy"}, b"\0" * 4
    ),
    "an unknown type": lambda: _lying({"x": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a pickle": lambda: pickle.dumps({"x": 1}),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_lie_are_refused(checkpoint: Path, tmp_path: Path, model: Any, lie: str) -> None:
    (checkpoint / "model.safetensors").write_bytes(LIES[lie]())
    _edit(checkpoint / "config.json", tie_word_embeddings=True)
    for read in (
        lambda: load_policy(checkpoint, device="cpu"),
        lambda: load_weights(model, checkpoint),
        lambda: weight_shapes(checkpoint),
        lambda: sampler_copy(checkpoint, tmp_path / "scratch"),
    ):
        with pytest.raises(RondoError, match="safetensors"):
            read()


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 2))
def test_weights_with_changed_bytes(
    tmp_path_factory: pytest.TempPathFactory, intact: bytes, model: Any, changes: list[tuple[int, int]], cut: int
) -> None:
    """In the header and right after it. Where only numbers changed there is nothing to refuse; nothing else passes."""
    directory = tmp_path_factory.mktemp("fuzz")
    data = bytearray(intact)
    for position, value in changes:
        data[position] = value
    (directory / "model.safetensors").write_bytes(data[: len(data) - cut])
    for read in (lambda: weight_shapes(directory), lambda: load_weights(model, directory)):
        try:
            read()
        except RondoError:
            continue


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (tiny_llama(tmp_path_factory.mktemp("bytes") / "model") / "model.safetensors").read_bytes()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model_type", "tie_word_embeddings", "architectures", "eos_token_id")


@FUZZ
@given(values | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values)), st.binary(max_size=20))
def test_configurations_of_any_kind(
    tmp_path_factory: pytest.TempPathFactory, intact: bytes, value: Any, tail: bytes
) -> None:
    directory = tmp_path_factory.mktemp("config")
    (directory / "model.safetensors").write_bytes(intact)
    for data in (json.dumps(value).encode(), json.dumps(value).encode() + tail):
        (directory / "config.json").write_bytes(data)
        for read in (lambda: sampler_copy(directory, directory / "scratch"), lambda: max_context(directory)):
            try:
                read()
            except RondoError:
                continue
