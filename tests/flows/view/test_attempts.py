"""Prompts that people try on two checkpoints: a real engine in a process of its own, and what goes wrong."""

import html
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from flows.analysis.pruning import prune_to
from flows.view import trial_engines
from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.trials import Asked, Trial, Trials
from flows.workers.trial import TrialSettings
from pipeline.config import SamplingConfig
from pipeline.data.chat_template import encode_conversation
from pipeline.errors import ConfigError
from pipeline.model.policy import load_tokenizer
from pipeline.records import PROBE, PROMPTS, to_table
from pipeline.sampling import SamplingRequest, finish
from pipeline.sampling.transformers_engine import TransformersSampler
from storage.log.manifest import Key
from storage.log.store import Store
from storage.log.writer import Writer
from storage.tables.checkpoints import stage_directory, weights_digest
from storage.tables.shards import write_table
from support.finished_run import finished_run, prompts_table, small_recipe
from support.tiny import tiny_llama

SETTINGS = TrialSettings(temperature=1.0, top_p=1.0, max_tokens=12, seed=7)
PROBED = [{"prompt_token_ids": [5], "token_ids": [6], "logp": -1.0, "previous_logp": None}]


def with_weights(store: Store, name: str, *, chat: bool, probed: bool = False):
    """Commits weights of its own to each round.

    Args:
        probed: also what they give the probe, which vLLM is held against; else that is made up.
    """

    def commit(writer: Writer, number: int) -> None:
        with stage_directory(store, name, number, "checkpoint") as staged:
            made = tiny_llama(staged.path, seed=number, scale=0.5, chat_template=chat)
            config = SamplingConfig(engine="transformers")
            logp = TransformersSampler(made, config).score([([5], [6])])[0][0] if probed else -1.0
        probe = to_table([{**row, "logp": logp} for row in PROBED], PROBE)
        writer.commit(Key(number, "checkpoint"), staged.files, {"policy": weights_digest(staged.files)})
        writer.commit(Key(number, "probe"), [write_table(store, name, number, "probe", probe)])

    return commit


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("root"))
    talks = finished_run(store, "talks", also=with_weights(store, "talks", chat=True))
    prune_to(store, talks, {0, 2})
    plain = to_table([{**row, "messages": None} for row in prompts_table().to_pylist()], PROMPTS)
    finished_run(store, "plain", rounds=1, prompts=plain, also=with_weights(store, "plain", chat=False))
    return store


@pytest.fixture(scope="module")
def trials(store: Store) -> Iterator[Trials]:
    trials = Trials(store)
    yield trials
    pids = trials.pids
    trials.close()
    assert not any(map(psutil.pid_exists, pids))
    assert trials.pids == []


def done(trials: Trials, asked: Asked) -> Trial:
    """Tries a prompt, and waits for the answers."""
    trial = trials.begin("talks", asked)
    until = time.monotonic() + 120  # the engine imports torch, on a machine that may be busy
    while trial.state != "done":
        assert time.monotonic() < until
        time.sleep(0.02)
    return trial


def test_two_checkpoints_answer_as_the_engine_does_by_itself(store: Store, trials: Trials) -> None:
    trial = done(trials, Asked(("talks@0", "talks@latest"), "w1 w2", "w3 w4 w5", SETTINGS))
    messages = [{"role": "system", "content": "w1 w2"}, {"role": "user", "content": "w3 w4 w5"}]
    for side, number in zip(trial.sides, (0, 3), strict=True):
        assert side.problem is None
        assert (side.run, side.round, side.prompt.messages) == ("talks", number, messages)
        directory = (Path(store.root) / store.run("talks").files(number, "checkpoint")[0].path).parent
        tokenizer = load_tokenizer(directory)
        text, ids = encode_conversation(tokenizer, messages, of="it", add_generation_prompt=True)
        config = SamplingConfig(engine="transformers").served(1.0, 1.0).model_copy(update={"max_tokens": 12})
        (expected,) = finish(TransformersSampler(directory, config).sample([SamplingRequest("p", ids, 7)], config))
        assert side.answer is not None
        assert side.answer.prompt == text
        assert side.answer.text.split() == tokenizer.decode(expected.token_ids, skip_special_tokens=True).split()
        assert side.answer.tokens == len(expected.token_ids)
        assert side.answer.logp == pytest.approx(
            sum(expected.logprobs), abs=1e-4
        )  # threads differ: last bits of float32
    first, second = (side.answer.text for side in trial.sides if side.answer)
    assert first != second
    same = done(trials, Asked(("talks@0", "talks@0"), "w1 w2", "w3 w4 w5", SETTINGS))
    assert [side.answer.text for side in same.sides if side.answer] == [first, first]


def test_another_run_and_plain_text(trials: Trials) -> None:
    trial = done(trials, Asked(("plain@1", "talks@2"), None, "w3 w4", SETTINGS))
    assert [side.problem for side in trial.sides] == [None, None]
    assert trial.sides[0].answer is not None
    assert trial.sides[0].answer.prompt == "w3 w4"
    refused = done(trials, Asked(("plain@0", "talks@2"), "", "w3", SETTINGS))
    assert "no chat template" in (refused.sides[0].problem or "")
    assert refused.sides[1].answer is not None


def test_what_does_not_fit_is_a_sentence_of_that_side(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    long = done(trials, Asked(("talks@0", "talks@2"), "", "w3 " * 60, SETTINGS))  # the context is 64 tokens
    assert all("more than the context of 64" in (side.problem or "") for side in long.sides)
    assert done(trials, Asked(("talks@0", "talks@2"), "", "w3", SETTINGS)).sides[1].answer is not None


def test_an_engine_that_is_killed_is_a_sentence_and_the_next_prompt_starts_another(trials: Trials) -> None:
    (pid,) = trials.pids
    psutil.Process(pid).kill()
    asked = Asked(("talks@0", "talks@0"), "", "w3", SETTINGS)
    first = done(trials, asked)
    assert all(side.answer is not None or "ended with status" in (side.problem or "") for side in first.sides)
    assert done(trials, asked).sides[0].answer is not None


@pytest.fixture
def visitor(store: Store, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("flows.view.app.Trials", lambda _store: trials)
    return TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1", follow_redirects=False)


def form_of(visitor: TestClient, run: str) -> dict[str, str]:
    """What the form of a run begins with."""
    shown = visitor.get(f"/run/{run}/try").text
    fields = dict(re.findall(r'<input [^>]*name="(\w+)"[^>]*value="([^"]*)"', shown))
    return {name: html.unescape(value) for name, value in fields.items()}


def test_the_page_by_its_form_alone(visitor: TestClient) -> None:
    form = form_of(visitor, "talks")
    assert {name: form[name] for name in ("a", "b", "temperature", "top_p", "max_tokens", "seed")} == {
        "a": "talks@0", "b": "talks@3", "temperature": "1", "top_p": "1", "max_tokens": "48", "seed": "0",
    }  # fmt: skip
    hostile = "<script>alert(1)</script> \x1b[31m \u202e w3"
    begun = visitor.post("/run/talks/try", data={**form, "max_tokens": "5", "user": hostile, "system": "w1"})
    assert begun.status_code == 303
    until = time.monotonic() + 120
    while 'http-equiv="refresh"' in (shown := visitor.get(begun.headers["location"]).text):
        assert "Sampling…" in shown
        assert time.monotonic() < until
        time.sleep(0.05)
    assert '<h2 id="answers">Answers</h2>' in shown
    assert shown.count("of at most") == 0
    assert len(re.findall(r"[1-5] tokens", shown)) == 2
    assert "<script>alert" not in shown
    assert "\x1b" not in shown.partition("<form")[0]
    assert ">\n&lt;script&gt;" in shown.partition('<textarea id="user"')[2]  # to be changed and tried again
    assert "Style" not in begun.headers
    assert 'name="system"' not in visitor.get("/run/plain/try").text


def test_what_was_tried_on_the_page_of_another_run_is_not_shown_here(visitor: TestClient, trials: Trials) -> None:
    trial = done(trials, Asked(("talks@0", "talks@2"), "", "w3", SETTINGS))
    here, there = (visitor.get(f"/run/{run}/try", params={"trial": trial.key}) for run in ("talks", "plain"))
    assert (here.status_code, there.status_code) == (200, 404)
    sentence = "this prompt was tried on the page of run 'talks': look at it there"
    assert sentence in html.unescape(there.text)
    answer = trial.sides[0].answer
    assert answer is not None
    assert answer.text.strip() in html.unescape(here.text)
    assert '<h2 id="answers">' not in there.text
    form = {"trial": trial.key, "labeller": "bea", "choice": "tie", "token": form_of(visitor, "plain")["token"]}
    refused = visitor.post("/run/plain/try/label", data=form)
    assert (refused.status_code, sentence in html.unescape(refused.text)) == (400, True)


def test_what_cannot_be_tried_is_said_and_the_prompt_stays(visitor: TestClient) -> None:
    form = {**form_of(visitor, "talks"), "user": "my words"}

    def refused(**changes: str) -> str:
        answer = visitor.post("/run/talks/try", data={**form, **changes})
        assert answer.status_code == 400
        return html.unescape(answer.text)

    assert "round 9 of run 'talks' is not finished" in refused(b="talks@9")
    assert "my words</textarea>" in refused(b="talks@9")
    assert "weights of round 1 of run 'talks' were pruned" in refused(b="talks@1")
    assert "there is no run" in refused(a="none@1")
    assert "the prompt is empty" in refused(user=" ")
    assert "more than 100,000 letters" in refused(user="x" * 100_001)
    assert "temperature '9' in the form" in refused(temperature="9")
    assert "top_p '0' in the form" in refused(top_p="0")
    assert "temperature 'nan'" in refused(temperature="nan")
    assert "another start of rondo view" in refused(token="guessed")
    assert visitor.post("/run/talks/try", data=form, headers={"origin": "http://evil.example"}).status_code == 403
    assert visitor.get("/run/talks/try?trial=guessed").status_code == 404
    page = visitor.get("/run/talks/try").text
    assert "the weights of 1 round of talks were pruned" in page
    assert '<option value="talks@1">' not in page
    assert '<option value="plain@latest">' in page


def test_an_engine_that_cannot_start_is_a_sentence_and_the_next_prompt_starts_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trials, asked = Trials(store), Asked(("talks@0", "talks@0"), "", "w3", SETTINGS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot start: .*No such file.*set TMPDIR"):
            trials.begin("talks", asked)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        assert done(trials, asked).sides[0].answer is not None
        (scratch,) = tmp_path.glob("rondo-try-*")
        (scratch / "engine-1" / "copied").mkdir()  # as weights of a store in a bucket are
        engines = trials._engines
        assert engines is not None
        engines._loop.call_soon_threadsafe(engines._rest)
        until = time.monotonic() + 120
        while any(path.is_dir() for path in scratch.iterdir()):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert trials.pids == []
        assert (scratch / "engine-1.log").exists()
    finally:
        trials.close()
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.workers import trial
    from pipeline.errors import OutOfMemoryError

    with pytest.raises(OutOfMemoryError, match=r"at least 1000\.0 GB of memory"):
        trial._check_memory(10**12)
    trial._check_memory(1)


def test_an_idle_engine_is_ended(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    (pid,) = trials.pids
    monkeypatch.setattr(trial_engines, "IDLE_SECONDS", 0.2)
    done(trials, Asked(("talks@0", "talks@0"), "", "w3", SETTINGS))
    until = time.monotonic() + 120
    while trials.pids or pid in psutil.pids():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.vllm
def test_vllm_answers_and_takes_the_weights_of_the_other_checkpoint_in_place(tmp_path: Path) -> None:
    """Its likeliest answer is that of transformers, for each checkpoint, from one process."""
    store = Store.open(tmp_path)
    recipe = small_recipe(sampling={"prompts_per_round": 3, "candidates": 4, "cache_gib": 0.25})
    finished_run(store, "fast", recipe=recipe, rounds=1, also=with_weights(store, "fast", chat=True, probed=True))
    trials = Trials(store)
    try:
        trial = trials.begin(
            "fast", Asked(("fast@0", "fast@1"), "", "w3 w4 w5", replace(SETTINGS, temperature=0.0), "vllm")
        )
        stages = set()
        until = time.monotonic() + 300  # it imports vLLM, on a machine that may be busy
        while trial.state != "done":
            assert time.monotonic() < until
            stages.add(trial.sides[0].stage)
            time.sleep(0.02)
        assert {"starts", "loads"} <= stages
        assert len(trials.pids) == 1
        for side, number in zip(trial.sides, (0, 1), strict=True):
            assert side.problem is None
            directory = (Path(store.root) / store.run("fast").files(number, "checkpoint")[0].path).parent
            messages = [{"role": "user", "content": "w3 w4 w5"}]
            _, ids = encode_conversation(load_tokenizer(directory), messages, of="it", add_generation_prompt=True)
            config = SamplingConfig(engine="transformers").served(0.0, 1.0).model_copy(update={"max_tokens": 12})
            (expected,) = finish(TransformersSampler(directory, config).sample([SamplingRequest("p", ids, 7)], config))
            assert side.answer is not None
            assert side.answer.tokens == len(expected.token_ids)
            assert side.answer.logp == pytest.approx(sum(expected.logprobs), abs=1e-3)  # another engine, in float32
        assert trial.sides[0].answer != trial.sides[1].answer
    finally:
        trials.close()
    assert trials.pids == []
