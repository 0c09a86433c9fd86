"""Rounds on the Hub, over HTTP against a stand-in for it: what arrives, and what is said where it does not."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from flows.cli.share import checkpoint
from flows.errors import PublishError
from flows.publish import hub as hub_client
from flows.publish.cards import escaped
from flows.publish.publish import What, publish
from pipeline.config import LoraConfig
from pipeline.errors import ConfigError, DataError
from pipeline.model.lora import Adapter
from pipeline.model.policy import load_tokenizer
from storage.errors import DamagedFileError, NotCommittedError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory
from support import finished_run as small
from support.hub_server import TOKEN, Fault, StandIn, hub_server
from support.tiny import tiny_llama

BOTH = ("dataset", "model")
NAME = "someone/films"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    import huggingface_hub.constants

    # The stand-in speaks git-lfs; the Hub's other protocol for large files needs a service of its own.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_client, "_WAIT_S", 0.0)
    # The client waits seconds before it asks again by itself; how long is no matter here.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("weights") / "policy")


def run_with_checkpoint(root: Path | str, weights: Path, **changes: object) -> tuple[Store, Run]:
    """The small finished run, and a third round that has a checkpoint too."""
    store = Store.open(root)
    small.finished_run(store, rounds=2, recipe=small.small_recipe(**changes))
    run = store.run("small")
    with run.writer() as writer:
        with stage_directory(store, "small", 3, "checkpoint") as staged:
            for path in weights.iterdir():
                (staged.path / path.name).write_bytes(path.read_bytes())
        writer.commit(Key(3, "checkpoint"), staged.files)
        candidates = {stage: run.files(2, stage) for stage in ("candidates", "judgments", "preferences")}
        for stage, files in candidates.items():
            writer.commit(Key(3, stage), files)
        writer.finish_round(3, run.rounds()[2].meta | {"round": 3})
    return store, run


def test_a_round_arrives_as_model_and_dataset(hub: StandIn, tmp_path: Path, weights: Path) -> None:
    store, run = run_with_checkpoint(tmp_path / "root", weights)
    urls = publish(store, run, 3, NAME, What.both, private=True)
    assert urls == [f"{hub.url}/datasets/{NAME}", f"{hub.url}/{NAME}"]
    model, dataset = (hub.repositories[kind, NAME] for kind in ("model", "dataset"))
    assert model.private
    assert dataset.private
    for path in weights.iterdir():
        assert model.files[path.name] == path.read_bytes()
    assert set(dataset.files) == {"README.md", "data/train-00000-of-00001.parquet"}
    (tmp_path / "pairs.parquet").write_bytes(dataset.files["data/train-00000-of-00001.parquet"])
    assert pq.read_table(tmp_path / "pairs.parquet").num_rows == 3
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, data in model.files.items():
        (arrived / name).write_bytes(data)
    assert AutoModelForCausalLM.from_pretrained(arrived).config.model_type == "llama"


def test_the_cards_say_where_it_comes_from(hub: StandIn, tmp_path: Path, weights: Path) -> None:
    store, run = run_with_checkpoint(tmp_path / "root", weights)
    publish(store, run, 3, NAME, What.both, private=False)
    card = hub.repositories["model", NAME].files["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["datasets"] == [NAME]
    assert "base_model" not in front, "a local directory is no base model of the Hub"
    for part in (
        "| run | small, from recipe small |",
        "| round | 3 of 3 |",
        "+0.360±0.279",
        f'from_pretrained("{NAME}")',
    ):
        assert part in text
    assert not hub.repositories["model", NAME].private
    with pytest.raises(NotCommittedError, match="round 2 of run 'small' has no checkpoint"):
        publish(store, run, 2, NAME, What.model, private=False)


def test_a_base_model_of_the_hub_is_named_and_directories_are_not(hub: StandIn, tmp_path: Path, weights: Path) -> None:
    changes = {
        "policy": {"source": "pretrained", "path": "Qwen/Qwen2.5-0.5B"},
        "prompts": {"source": "jsonl", "path": "/home/someone/secret/prompts.jsonl"},
        "description": "```\n<img src=x onerror=alert(1)> \x1b[31m",
    }
    store, run = run_with_checkpoint(tmp_path / "root", weights, **changes)
    publish(store, run, 3, NAME, What.model, private=False)
    card = hub.repositories["model", NAME].files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert "/home/someone" not in card
    assert "path: prompts.jsonl" in card
    assert "\x1b" not in card
    recipe = card.split("## Recipe\n")[1]
    assert recipe.split()[0] == "````yaml", "the fence is longer than any in the text"


def test_what_users_wrote_is_text_on_a_card() -> None:
    assert escaped("a|b\n<b>[x](http://y) `c` \x1b[0m") == (
        "a&#124;b &lt;b&gt;&#91;x&#93;(http&#58;//y) &#96;c&#96; &#92;x1b&#91;0m"
    )


def test_to_publish_again_uploads_only_what_changed(hub: StandIn, tmp_path: Path, weights: Path) -> None:
    store, run = run_with_checkpoint(tmp_path / "root", weights)
    for _ in range(2):
        publish(store, run, 3, "films", What.both, private=False)
    assert {name for _, name in hub.repositories} == {NAME}, "a bare name is in the namespace of the token's owner"
    assert [len(hub.repositories[kind, NAME].commits) for kind in BOTH] == [1, 1]
    assert sum(method == "PUT" for method, _ in hub.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/api/repos/create", 500),
        Fault("/preupload/", 500),
        Fault("/upload/", 503),
        Fault("/commit/", 500, times=2),
        Fault("/api/repos/create", close="after"),
        Fault("/upload/", close="before"),
        Fault("/commit/", close="before"),
        Fault("/commit/", close="after"),
    ],
    ids=lambda fault: f"{fault.path} {fault.status or fault.close}".replace("/", " "),
)
def test_what_fails_once_is_tried_again(hub: StandIn, tmp_path: Path, weights: Path, fault: Fault) -> None:
    store, run = run_with_checkpoint("memory://", weights)
    hub.faults.append(fault)
    publish(store, run, 3, NAME, What.both, private=False)
    assert [len(hub.repositories[kind, NAME].commits) for kind in BOTH] == [1, 1], "no commit is made twice"
    assert hub.repositories["model", NAME].files["model.safetensors"] == (weights / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/api/", 401, times=9), "does not know the token in HF_TOKEN: give one that may write"),
        (Fault("/commit/", 403, times=9), "may not write the dataset 'someone/films'"),
        (Fault("/preupload/", 404, times=9), "has no dataset 'someone/films', or does not show it"),
        (Fault("/commit/", 500, times=9), r"answered 500 to the dataset 'someone/films', 3 times .*: publish again"),
        (Fault("/commit/", times=9, close="before"), "the connection to the Hub at .* broke 3 times"),
    ],
    ids=["401", "403", "404", "500", "drop"],
)
def test_a_hub_that_refuses_is_one_clear_sentence(
    hub: StandIn, tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture, fault: Fault, message: str
) -> None:
    store, run = run_with_checkpoint("memory://", weights)
    hub.faults.append(fault)
    with caplog.at_level(logging.DEBUG), pytest.raises(PublishError, match=message) as caught:
        publish(store, run, 3, NAME, What.both, private=False)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in caplog.text
    assert hub.authorized == {f"Bearer {TOKEN}"}


def test_nothing_is_asked_of_the_hub_where_the_round_is_not_as_it_was(
    hub: StandIn, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = run_with_checkpoint(tmp_path / "root", weights)
    with pytest.raises(ConfigError, match="'a/b/c' is no name of a repository"):
        publish(store, run, 3, "a/b/c", What.both, private=False)
    with pytest.raises(NotCommittedError, match="round 0 of run 'small' has no preferences"):
        publish(store, run, 0, NAME, What.both, private=False)
    (file,) = (file for file in run.files(3, "checkpoint") if file.name == "model.safetensors")
    path = store.objects.local_path(file.path)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFileError):
        publish(store, run, 3, NAME, What.both, private=False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="set HF_TOKEN"):
        publish(store, run, 3, NAME, What.both, private=False)
    assert hub.requests == []


def test_all_prompts_dropped_is_no_dataset(hub: StandIn, weights: Path) -> None:
    store = Store.open("memory://")
    run = small.finished_run(store, rounds=1, text=lambda *_: " ", changes={"margin": None})
    with pytest.raises(DataError):
        publish(store, run, 1, NAME, What.dataset, private=False)


def test_a_checkpoint_is_printed_in_place_or_copied(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, _ = run_with_checkpoint(tmp_path / "root", weights)
    checkpoint("small@3", root=store.root)
    printed = Path(capsys.readouterr().out.strip())
    assert printed.is_relative_to(tmp_path / "root")
    checkpoint("small@3", to=tmp_path / "copy", root=store.root)
    assert capsys.readouterr().out.strip() == str(tmp_path / "copy")
    for directory in (printed, tmp_path / "copy"):
        assert AutoModelForCausalLM.from_pretrained(directory).config.model_type == "llama"
    with pytest.raises(ConfigError, match="is already there, and not an empty directory"):
        checkpoint("small@3", to=tmp_path / "copy", root=store.root)


def test_an_adapter_is_handed_on_as_the_whole_model(hub: StandIn, tmp_path: Path, weights: Path) -> None:
    """With ones in both of its matrices an adapter of rank 4 adds 8 / 4 * 4 = 8 to each number of a weight."""
    store, run = run_with_checkpoint(tmp_path / "root", weights)
    model = AutoModelForCausalLM.from_pretrained(weights)
    adapter = Adapter(model, LoraConfig(rank=4, alpha=8, target_modules=("q_proj",)), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.fill_(1.0)
    with run.writer() as writer:
        with stage_directory(store, "small", 4, "checkpoint") as staged:
            adapter.save(load_tokenizer(weights), staged.path)
        writer.commit(Key(4, "checkpoint"), staged.files)
        writer.finish_round(4, run.rounds()[3].meta | {"round": 4})
    with pytest.raises(ConfigError, match=r"small@4 is an adapter: give a directory for the whole model, as --to"):
        checkpoint("small@4", root=store.root)
    checkpoint("small@4", to=tmp_path / "copy", root=store.root)
    publish(store, run, 4, NAME, What.model, private=False)
    sent = hub.repositories["model", NAME].files
    assert not [name for name in sent if name.startswith("adapter")]
    assert sent["model.safetensors"] == (tmp_path / "copy" / "model.safetensors").read_bytes()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    for name, before in AutoModelForCausalLM.from_pretrained(weights).state_dict().items():
        torch.testing.assert_close(whole[name], before + 8.0 if "q_proj" in name else before, rtol=0, atol=1e-6)
