"""What the pages say of a run whose newest round failed its gate: a mark and the words, on each of them."""

from collections.abc import Iterator

import pytest

from flows.registry.gate_result import GateMeasure, GateResult
from flows.registry.round_summary import RoundSummary
from flows.view.pages.run import page as run_page
from flows.view.site import Site
from pipeline.records import CANDIDATES, EVALUATION_LOGPS, JUDGMENTS, PROMPTS, to_table
from storage.log.store import Store
from storage.queries.sql import select
from support.finished_run import commit
from support.sampled_run import sampled_run
from support.view_pages import links, statements, table, visitor, words

WHY = "gate failed: long fell from 0.75 in round 0 to 0.25 on the same 16 prompts (p 0.001, level 0.01); the last good"
GATE = GateResult(
    passed=False, why=WHY, level=0.01, failures=1, learning_rate=5e-4, beta=0.2, conditions="c", since=0,
    measures=[
        GateMeasure(
            name="long", mean=0.25, prompts=16, best=0, best_mean=0.75, loss=0.001, gain=1.0, failed=True, next_best=0
        ),
        GateMeasure(name="reward", mean=0.5, prompts=2, best=1, best_mean=0.5, loss=0.75, gain=0.5, next_best=1),
    ],
)  # fmt: skip

AGAIN = GATE.model_copy(update={"passed": True, "why": None, "failures": 0})
"""Round 3, which was taken with the same smaller steps, passes."""


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(Store.open(tmp_path_factory.mktemp("gate")))
    run = sampled_run(site.store, finished=0)
    first = {**run.round_entry(0).meta, "round": 1, "policy": "policy1", "no_update": "left out"}  # it has no steps
    second = {**first, "round": 2, "policy": "policy2", "gate": GATE, "alarms": [WHY]}
    with run.writer() as writer:
        for summary in map(RoundSummary.model_validate, (first, second)):
            writer.finish_round(summary.round, summary.model_dump(mode="json"))
    yield site
    site.close()


def test_the_round_says_what_it_lost_and_where_the_head_is(site: Site) -> None:
    found = visitor(site).get("/run/sampled/round/2").text
    assert "✗ The gate: failed" in words(found)
    assert "The head of the run stays at round 1, from which the next round starts." in words(found)
    assert "with learning rate 0.0005 and beta 0.2, from round 1" in words(found)
    assert table(found, "What the gate measured") == [
        ["long", "0.25", "0.75", "0", "0.001", "1", "✗ lost"],
        ["reward", "0.5", "0.5", "1", "0.75", "0.5", "no loss"],
    ]
    assert "can do less than the best one before it" in words(found), "the alarm has its advice"
    assert "The gate" not in words(visitor(site).get("/run/sampled/round/1").text)


def test_a_round_after_a_failed_one_is_held_against_the_policy_that_it_started_from(site: Site) -> None:
    """Round 3 started from round 1, whose policy gave its completion -3.5 nats: its own gives it -3, 0.5 more."""
    run = site.run("sampled").run
    summary = RoundSummary.model_validate({**run.round_entry(1).meta, "round": 3, "policy": "policy3", "gate": AGAIN})
    logps = {"prompt_id": "e0", "candidate": 0, "policy": -3.0, "previous": -3.5, "initial": -4.0, "tokens": 3}
    completion = {
        "prompt_id": "e0", "candidate": 0, "token_ids": [1, 2, 3], "logprobs": [-1.0] * 3, "text": "a",
        "finish_reason": "stop", "seed": 0, "policy": "policy3",
    }  # fmt: skip
    stored = (("eval_candidates", [completion], CANDIDATES), ("eval_logps", [logps], EVALUATION_LOGPS))
    with run.writer() as writer:
        for stage, rows, schema in stored:
            commit(site.store, writer, "sampled", 3, stage, to_table(rows, schema))
        writer.finish_round(3, summary.model_dump(mode="json"))
    tokens = words(visitor(site).get("/run/sampled/tokens/3/held-out/e0/0").text)
    assert "minus round 1 +0.50 -3.00 less -3.50" in tokens
    prompt = words(visitor(site).get("/run/sampled/prompt/e0?round=3&kind=held-out").text)
    assert '"before" is the policy of round 1.' in prompt
    assert "The implicit reward is beta (0.2) times" in prompt, "the gate's, by which the rewards beneath are"


def test_the_run_and_the_list_of_runs_say_which_policy_is_good(site: Site) -> None:
    opened = site.run("sampled")
    assert "✗ round 2 failed its gate: the run's policy is that of round 1" in run_page(opened).values["facts"]
    rounds = visitor(site).get("/run/sampled").text
    assert '<a href="/run/sampled/round/2" aria-label="Round 2, failed its gate">2 ✗</a>' in rounds
    assert '<a href="/run/sampled/round/1" aria-label="Round 1">1</a>' in rounds
    assert "✗ gate failed in 1, good: round 1" in words(visitor(site).get("/").text)


def test_answers_to_the_gate_are_a_kind_of_completions(site: Site) -> None:
    """Its prompts are in a table of their own, and its judge is none of the recipe's others."""
    of_run = {"prompt_id": "g0", "text": "What is 2 + 2?", "token_ids": [7, 8], "source": "test", "messages": None}
    prompt = {**of_run, "reference_answer": "4", "split": "evaluation"}
    answer = {
        "prompt_id": "g0", "candidate": 0, "token_ids": [1, 2], "logprobs": [-0.25, -0.5], "text": "It is five.",
        "finish_reason": "stop", "seed": 0, "policy": "policy2",
    }  # fmt: skip
    judged = {
        "prompt_id": "g0", "candidate": 0, "judge": "exact_answer", "judge_version": "1", "status": "ok", "score": 0.0,
        "score_std": None, "components": [], "rationale": None, "latency": 0.0, "raw": None,
    }  # fmt: skip
    stored = (
        (3, "gate_prompts", prompt, PROMPTS), (3, "gate_candidates", answer, CANDIDATES),
        (3, "gate_judgments", judged, JUDGMENTS),
    )  # fmt: skip
    with site.run("sampled").run.writer() as writer:
        for number, stage, row, schema in stored:
            commit(site.store, writer, "sampled", number, stage, to_table([row], schema))
        meta = {**site.run("sampled").run.round_entry(2).meta, "round": 3}
        writer.finish_round(3, meta)
    asking = visitor(site)
    found = asking.get("/run/sampled/completions?round=3&kind=gate").text
    assert "1 fit" in words(found)
    sql, command = statements(found)
    assert [row["text"] for row in select(site.store, site.run("sampled").run, sql).to_pylist()] == ["It is five."]
    assert "rondo show sampled@3 --table gate_completions" in command
    prompt_page = asking.get("/run/sampled/prompt/g0?round=3&kind=gate")
    assert prompt_page.status_code == 200
    said = words(prompt_page.text)
    assert "What is 2 + 2?" in said
    assert "exact_answer: 0" in said
    assert "Answers to the gate's prompts are scored, and nothing else" in said
    tokens = words(asking.get("/run/sampled/tokens/3/gate/g0/0").text)
    assert "-0.75 nats per sequence" in tokens
    assert "answers to the gate's prompts are measured under no other policy" in tokens
    round_page = asking.get("/run/sampled/round/3").text
    assert "/run/sampled/completions?round=3&kind=gate" in links(round_page), "the alarm leads to them"
