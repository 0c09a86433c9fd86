"""GGUF files: the weights that were written are the weights of the checkpoint, exactly, and what is wrong is named."""

from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.model.gguf import dequantise, gguf_digest
from pipeline.model.gguf_files import find_gguf
from pipeline.model.policy import load_policy
from support.gguf_file import write_gguf
from support.tiny import CHAT_TEMPLATE, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    directory = tmp_path_factory.mktemp("gguf")
    written = write_gguf(tiny_llama(tmp_path_factory.mktemp("source")), directory / "tiny.Q8_0.gguf")
    tiny_tokenizer().save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return directory, written


def test_the_weights_are_those_of_the_file(model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    directory, written = model
    file = find_gguf(str(directory))
    assert file == directory / "tiny.Q8_0.gguf" == find_gguf(str(file))
    dequantise(file, tmp_path / "checkpoint")
    policy, tokenizer = load_policy(tmp_path / "checkpoint", device="cpu")
    assert policy.state_dict().keys() == written.keys()
    for name, weight in policy.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, written[name]), name
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert not hasattr(policy.config, "quantization_config")
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_the_hash_is_of_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"a")
    before = gguf_digest(file, torch.float32)
    for name in ("notes.txt", "adapter_config.json", "another.gguf"):
        (tmp_path / name).write_text("of no matter")
        assert gguf_digest(file, torch.float32) == before, name
    digests = [before]
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja", "vocab.txt"):
        for content in ("a", "b"):
            (tmp_path / name).write_text(content)
            digests.append(gguf_digest(file, torch.float32))
    file.write_bytes(b"b")
    digests.append(gguf_digest(file, torch.float32))
    for package in ("transformers", "gguf"):
        versions = {"transformers": "5.0.0", "gguf": "0.19.0", package: "9.9.9"}
        monkeypatch.setattr("pipeline.model.gguf.version", versions.__getitem__)
        digests.append(gguf_digest(file, torch.float32))
    digests.append(gguf_digest(file, torch.bfloat16))
    assert len(set(digests)) == len(digests) == 1 + 5 * 2 + 1 + 2 + 1


def test_what_tokenizer_files_beside_it_do_not_name_comes_from_the_file(tmp_path: Path) -> None:
    template = "of the file: {{ messages }}"
    write_gguf(tiny_llama(tmp_path / "source"), tmp_path / "tiny.gguf", chat_template=template)
    tiny_tokenizer().save_pretrained(tmp_path)
    dequantise(tmp_path / "tiny.gguf", tmp_path / "both")
    (tmp_path / "tokenizer_config.json").unlink()
    dequantise(tmp_path / "tiny.gguf", tmp_path / "one")
    both, one = (load_policy(tmp_path / name, device="cpu")[1] for name in ("both", "one"))
    assert (both.eos_token, both.bos_token, both.chat_template) == ("</s>", "<s>", template)
    assert (one.eos_token, one.bos_token, one.chat_template) == ("</s>", None, template)  # the file names no other
    assert one("w0 w1").input_ids == both("w0 w1").input_ids


def test_an_adapter_that_lies_beside_it_is_not_followed(
    model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    directory, written = model
    adapter = directory / "adapter_config.json"
    adapter.write_text('{"peft_type": "LORA", "base_model_name_or_path": "/another/model"}')
    try:
        dequantise(directory / "tiny.Q8_0.gguf", tmp_path / "checkpoint")
    finally:
        adapter.unlink()
    policy, _ = load_policy(tmp_path / "checkpoint", device="cpu")
    assert torch.equal(policy.get_input_embeddings().weight, written["model.embed_tokens.weight"])


def test_a_package_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_with_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a package of weights is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'package:a_package_with_a_model' holds no GGUF file"):
        find_gguf("package:a_package_with_a_model")
    (package / "one.gguf").touch()
    assert find_gguf("package:a_package_with_a_model") == package / "one.gguf"
    (package / "two.gguf").touch()
    with pytest.raises(ConfigError, match=r"several GGUF files \(one.gguf, two.gguf\)"):
        find_gguf("package:a_package_with_a_model")
    assert find_gguf(f"{package}/two.gguf") == package / "two.gguf"


@pytest.mark.parametrize("name", ["no_such_package", "os", "../elsewhere", "json.decoder"])
def test_a_package_that_is_not_there_is_named_with_its_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no Python package"):
        find_gguf(f"package:{name}")


def test_other_paths_are_left_alone(tmp_path: Path) -> None:
    assert find_gguf("owner/name") is None
    assert find_gguf(str(tmp_path)) is None
    checkpoint = tiny_llama(tmp_path / "checkpoint")
    (checkpoint / "beside.gguf").touch()
    assert find_gguf(str(checkpoint)) is None
    with pytest.raises(ConfigError, match="there is no file"):
        find_gguf(str(tmp_path / "none.gguf"))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match=r"broken.gguf' cannot be read .*: give one of an architecture"):
        dequantise(file, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
