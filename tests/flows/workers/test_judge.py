"""The judge's worker with a language model: what was judged is in the store, and a new process does not pay for it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.registry.recipes import parse_recipe
from flows.workers.judge import JudgeWorker
from flows.workers.references import TrialPrompt
from pipeline.errors import BudgetError, JudgeError
from pipeline.records import CANDIDATES, PROMPTS, components_of, to_table
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import read_table, write_table
from support.chat_server import Response, answers_shown, chat_server, fails, says
from support.compare import PAID
from support.recipes import TINY

PROMPT_COUNT, CANDIDATE_COUNT = 3, 4


def shard(store: Store) -> tuple[FileRef, FileRef]:
    prompts = [
        {"prompt_id": f"p{n}", "text": f"prompt {n}", "messages": None, "token_ids": [1], "source": "test",
         "reference_answer": None, "split": "train"}
        for n in range(PROMPT_COUNT)
    ]  # fmt: skip
    candidates = [
        {"prompt_id": f"p{n}", "candidate": k, "token_ids": [1, 2], "text": f"{n} {'good ' * k}",
         "logprobs": [-1.0, -1.0], "finish_reason": "stop", "seed": k, "policy": "x"}
        for n in range(PROMPT_COUNT) for k in range(CANDIDATE_COUNT)
    ]  # fmt: skip
    return (
        write_table(store, "run", 1, "prompts", to_table(prompts, PROMPTS)),
        write_table(store, "run", 1, "candidates", to_table(candidates, CANDIDATES)),
    )


def judged(root: Path, judge: dict[str, Any], places: list[int]) -> pa.Table:
    """One shard, by a worker that holds nothing of earlier ones."""
    store = Store.open(root)
    prompts, candidates = shard(store)
    recipe = parse_recipe(TINY, [f"judge={json.dumps(judge)}"]).model_dump(mode="json")
    worker = JudgeWorker(root=str(root), run="run", recipe=recipe, scratch=str(root / "scratch"))
    file = worker.judge((prompts,), candidates, 1, "judgments", 0, places, [None] * len(places), None).file
    return read_table(store, [file])


def honest(body: dict[str, Any], _: int) -> Response:
    score = 1 + sum(text.count("good") for text in answers_shown(body))
    return says(json.dumps({"score": score}), {str(score): 1.0})


def llm(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "llm", "model": "m", "base_url": url, "mode": "rubric", "retries": 0, "concurrency": 1, **more}


def test_a_shard_that_was_begun_is_not_paid_twice(tmp_path: Path) -> None:
    total = PROMPT_COUNT * CANDIDATE_COUNT

    def dying(body: dict[str, Any], n: int) -> Response:
        return honest(body, n) if n < 7 else Response(close=True)

    with chat_server(dying) as first, pytest.raises(JudgeError, match="cannot be reached"):
        judged(tmp_path, llm(first.url), [0])
    port = int(first.url.split(":")[2].removesuffix("/v1"))
    with chat_server(honest, port) as second:
        table = judged(tmp_path, llm(second.url), [0])
        assert len(second.bodies) == total - 7
        again = judged(tmp_path, llm(second.url), [0, 1])
        assert len(second.bodies) == total - 7
    assert table["score"].to_pylist() == [1.0, 2.0, 3.0, 4.0] * PROMPT_COUNT
    assert set(table["score_std"].to_pylist()) == {0.0}
    assert table["raw"].to_pylist()[0] == '{"score": 1}'
    assert again.slice(0, total).drop_columns(list(PAID)).equals(table.drop_columns(list(PAID)))
    assert table["replies"].to_pylist() == [1.0] * total
    assert table["replies_cached"].to_pylist() == [1.0] * 7 + [0.0] * (total - 7)  # asked one after the other
    assert table["paid_tokens_in"].to_pylist() == [0.0] * 7 + [90.0] * (total - 7)
    assert again["tokens_in"].to_pylist() == [90.0] * total + [None] * total  # no language model is behind the second
    assert again["judge"].to_pylist() == ["llm"] * total + ["grammar"] * total


def test_a_budget_that_ran_out_is_new_in_the_next_process(tmp_path: Path) -> None:
    with chat_server(honest) as served:
        limited = llm(served.url, budget_requests=5)
        for sent in (5, 10):
            with pytest.raises(BudgetError, match=r"judge\.budget_requests is 5"):
                judged(tmp_path, limited, [0])
            assert len(served.bodies) == sent
        assert judged(tmp_path, limited, [0]).num_rows == 12
        assert len(served.bodies) == 12


def test_an_ensemble_shares_the_cache_with_its_members(tmp_path: Path) -> None:
    with chat_server(honest) as served:
        judged(tmp_path, llm(served.url), [0])
        members = [{"judge": llm(served.url), "offset": 1, "scale": 4}, {"judge": {"kind": "vader"}}]
        table = judged(tmp_path, {"kind": "ensemble", "members": members}, [0])
        assert len(served.bodies) == 12
    components = components_of(table["components"].to_pylist()[3])
    assert (components["llm"], components["llm.std"]) == (4.0, 0.0)
    # 4 is (4 - 1) / 4 on the ensemble's scale.
    assert table["score"].to_pylist()[3] == pytest.approx((0.75 + components["vader"]) / 2)


FUNCTIONS = """
def named(text):
    return 1.0

def broken(*, answer, **_):
    return answer.lenght

def picky(*, answer, **_):
    return {"4": 1.0}[answer]
"""


def tried(root: Path, judge: dict[str, Any], trial: TrialPrompt | None = None) -> list[str]:
    """What a worker says of its training judge, tried on a prompt of its table, or on another one."""
    recipe = parse_recipe(TINY, [f"judge={json.dumps(judge)}"]).model_dump(mode="json")
    worker = JudgeWorker(root=str(root), run="run", recipe=recipe, scratch=str(root / "scratch"))
    return worker.try_judges(trial, (shard(Store.open(root))[0],), [0])


def test_a_judge_is_tried_on_two_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tried_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(JudgeError, match=r"'tried_functions:named' cannot be called with the keywords prompt, .*\*\*_"):
        tried(tmp_path, {"kind": "python", "function": "tried_functions:named"})
    with pytest.raises(JudgeError, match=r"python gave neither of two trial answers .*failed: AttributeError: 'str'"):
        tried(tmp_path, {"kind": "python", "function": "tried_functions:broken"})
    # It scores what is right, and raises of all else: that is its way.
    picky = {"kind": "python", "function": "tried_functions:picky"}
    assert tried(tmp_path, picky, TrialPrompt("p", "2 + 2", None, "4")) == []
    assert tried(tmp_path, {"kind": "vader"}) == []
    assert tried(tmp_path, {"kind": "human"}) == []


def test_a_judge_model_is_tried_and_its_replies_are_kept(tmp_path: Path) -> None:
    with chat_server(honest) as served:
        for _ in range(2):
            assert tried(tmp_path, llm(served.url)) == []
        assert len(served.bodies) == 2
    with chat_server(lambda *_: says("I think")) as served, pytest.raises(JudgeError, match="unparsable: two replies"):
        tried(tmp_path, llm(served.url))
    long = {"error": {"code": "context_length_exceeded", "message": "it is long"}}
    with chat_server(lambda *_: fails(400, long)) as served:
        (notice,) = tried(tmp_path, llm(served.url))
    assert "(too_long: it is long); the run goes on" in notice
