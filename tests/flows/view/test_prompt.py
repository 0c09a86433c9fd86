"""The page of a prompt: its order, differences, evidence, and what the update did to its completions."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.analysis import queries
from flows.view.evidence import evidence
from flows.view.prompt_texts import Texts
from flows.view.site import Site
from pipeline.judges.human import HumanConfig
from pipeline.judges.llm import LlmConfig
from pipeline.preferences import build_preferences
from pipeline.records import (
    ASKED_JUDGMENTS,
    CANDIDATES,
    JUDGMENTS,
    PREFERENCE_LOGPS,
    PROBE,
    PROMPTS,
    THINKING_CANDIDATES,
    to_table,
)
from pipeline.usage import Usage
from storage.log.store import Store
from support.finished_run import commit, finished_run, prompts_table, say, small_recipe
from support.view_pages import elements, links, statements, table, visitor, words

ENDPOINT = {"kind": "llm", "name": "vader", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
HOSTILE = "</div><script>alert(1)</script> [a](javascript:b) ![c](http://d.e/f.png) \x1b[31m\u202e <img src=x>"
"""A text that tries to run something, to lead away, and to hide."""
MILLION = 1_000_000
EFFECTS = "Before and after the update"


TOKENS: dict[str, Any] = {"after_tokens": None, "reference_tokens": None}
MEASURED = [
    {"prompt_id": "t1", "candidates": [3, 0], "origin_round": None, "reference": [-3.0, -4.0], "before": [-3.0, -4.0],
     "after": [-2.5, -4.5], "loss_before": 0.6931, "loss_after": 0.6444, **TOKENS},
    {"prompt_id": "t1", "candidates": [3, 1], "origin_round": 2, "reference": [-9.0, -9.0], "before": [-9.0, -9.0],
     "after": [-9.0, -9.0], "loss_before": 9.0, "loss_after": 9.0, **TOKENS},
]  # fmt: skip
"""Of round 3: its only preference of t1, whose margin rose by 0.1 (0.5 + 0.5), and another of round 2."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    store = Store.open(root)

    def text(round: int, prompt: str, index: int) -> str:
        plain = f"{say(round, prompt, index)} **bold** of"
        return plain if prompt != "t2" else f"{HOSTILE} {index} {'x' * (MILLION if index == 2 else 1)}"

    def probe(writer: Any, round: int) -> None:
        # The token ids of completion 3 of each training prompt.
        row = {"prompt_token_ids": [1, 2], "token_ids": [6, round, 0], "logp": -2.5, "previous_logp": -3.25}
        commit(store, writer, "small", round, "probe", to_table([row], PROBE))
        if round == 3:
            commit(store, writer, "small", 3, "preference_logps", to_table(MEASURED, PREFERENCE_LOGPS))

    finished_run(store, text=text, rationale=lambda *_: HOSTILE, also=probe)
    _compared_run(store)
    _thinking_run(store)
    return root


def _thinking_run(store: Store) -> None:
    """A round at work, of completions of t1 that think: 0 and 1 answer, 2 does not, and 3 does not think at all.

    Its prompt and a reason of the judge have a million letters.
    """
    recipe = small_recipe(judge={**ENDPOINT, "mode": "rubric", "criteria": "good"})
    long = [
        {**row, "text": f"a{MILLION * 'p'}", "reference_answer": MILLION * "r"} for row in prompts_table().to_pylist()
    ]
    finished_run(store, "thinks", rounds=0, recipe=recipe, prompts=to_table(long, PROMPTS))
    ends = [("same answer", 5), ("other answer", 5), (None, 3), (None, None)]
    rows = [
        _candidate(index) | {
            "prompt_id": "t1", "answer": answer, "thought_tokens": tokens,
            "text": f"hm {index} </think>\n\n{answer}" if answer else f"hm {index}",
        }
        for index, (answer, tokens) in enumerate(ends)
    ]  # fmt: skip
    judged = [
        _compared(index) | {"prompt_id": "t1", "raw": None, "components": [], "score": float(index), "status": "ok"}
        for index in range(4)
    ]
    judged[0]["rationale"] = MILLION * "j"
    candidates, judgments = to_table(rows, THINKING_CANDIDATES), to_table(judged[:2], JUDGMENTS)
    preferences = build_preferences(candidates.slice(0, 2), judgments, recipe.preferences, seed=0)
    with store.run("thinks").writer() as writer:
        for stage, found in {
            "candidates": candidates, "judgments": to_table(judged, JUDGMENTS), "preferences": preferences,
        }.items():  # fmt: skip
            commit(store, writer, "thinks", 1, stage, found)


def _compared_run(store: Store) -> None:
    """A round at work, whose judge has compared three completions of t0 in both orders, and could not read one."""
    recipe = small_recipe(
        judge={**ENDPOINT, "mode": "pairwise"}, preferences={"rule": "full_ranking"},
        update={"objective": "plackett_luce"},
    )  # fmt: skip
    finished_run(store, "compared", rounds=0, recipe=recipe)
    candidates = to_table([_candidate(index) for index in range(4)], CANDIDATES)
    judgments = to_table([_compared(index) for index in range(4)], JUDGMENTS)
    preferences = build_preferences(candidates, judgments, recipe.preferences, seed=0)
    with store.run("compared").writer() as writer:
        for stage, rows in {"candidates": candidates, "judgments": judgments, "preferences": preferences}.items():
            commit(store, writer, "compared", 1, stage, rows)


def _candidate(index: int) -> dict[str, Any]:
    return {
        "prompt_id": "t0", "candidate": index, "token_ids": [index, 9], "logprobs": [-1.0, -2.0],
        "text": f"text {index}", "finish_reason": "length", "seed": index, "policy": "policy0",
    }  # fmt: skip


def _compared(index: int) -> dict[str, Any]:
    raw = json.dumps([{"candidates": [0, 1], "replies": ["A is better", None]}])
    components = [{"name": name, "value": value} for name, value in (("flips", 1.0), ("comparisons", 2.0))]
    return {
        "prompt_id": "t0", "candidate": index, "score": None if index == 3 else [0.5, 2.0, 1.0][index],
        "score_std": 0.25, "components": components, "rationale": "because", "judge": "vader", "judge_version": "v9",
        "status": "unparsable" if index == 3 else "ok", "latency": 1.5, "raw": raw,
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser(root: Path) -> TestClient:
    return visitor(Site(Store.open(root)))


def page(browser: TestClient, address: str) -> str:
    answer = browser.get(address)
    assert answer.status_code == 200, words(answer.text)
    return answer.text


def titles(shown: str) -> list[str]:
    """The headings of the completions, from above."""
    return [words(title) for title in re.findall(r'<h3 id="title-\d+">(.*?)</h3>', shown)]


def test_completions_stand_by_score_with_the_pair_word_by_word(browser: TestClient) -> None:
    """Scores rise with the index, so completion 3 is chosen and 0 rejected; their texts differ in the index alone."""
    shown = page(browser, "/run/small/prompt/t1?round=2&kind=training")
    assert titles(shown) == ["1. Completion 3 chosen", "2. Completion 2", "3. Completion 1", "4. Completion 0 rejected"]
    assert "answer <ins>3 </ins>to t1 in round 2 **bold** of" in shown
    assert "answer <del>0 </del>to t1 in round 2 **bold** of" in shown
    assert table(shown, "Preferences of this prompt") == [
        ["3 > 0", "0.43, 0.4", "0.03", "hard", "pair by best_vs_worst"]
    ]


def test_a_ranking_gives_the_order_and_what_was_not_judged_says_why(browser: TestClient) -> None:
    shown = page(browser, "/run/compared/prompt/t0")
    assert titles(shown) == ["1. Completion 1 chosen", "2. Completion 2", "3. Completion 0 rejected", "4. Completion 3"]
    assert "Completions by rank" in shown
    assert "vader: unparsable. because" in words(shown)
    assert "data-events" in shown  # the round is at work


def test_the_evidence_has_each_order_and_says_what_is_not_recorded(browser: TestClient) -> None:
    shown = words(page(browser, "/run/compared/prompt/t0"))
    assert "Reply, completion 0 shown first, 1 second A is better" in shown
    assert "Reply, completion 1 shown first, 0 second No reply." in shown
    unknown = "Whether replies came from the cache or were paid for is not measured in this round."
    assert f"Judge's version v9, 1.5 s. {unknown}" in shown  # the table is of a version without these columns
    assert "Parts of the score flips 1 comparisons 2" in shown


def test_what_was_paid_for_and_what_came_from_the_cache_is_said(tmp_path: Path) -> None:
    """Of t0's completions: two of three replies new; all from the cache; tokens not stated; and nothing asked."""
    store, usages = Store.open(tmp_path), [
        Usage(replies=3, replies_cached=1, tokens_in=270, tokens_out=30, paid_tokens_in=180, paid_tokens_out=20,
              cost=0.0125),
        Usage(replies=1.5, replies_cached=1.5, tokens_in=135, tokens_out=15),
        Usage(replies=1, tokens_in=None, tokens_out=None, paid_tokens_in=None, paid_tokens_out=None, cost=None),
        Usage(),
    ]  # fmt: skip
    finished_run(store, "paid", rounds=0, recipe=small_recipe(judge={**ENDPOINT, "mode": "pairwise"}))
    judged = [{**_compared(index), **asdict(usage)} for index, usage in enumerate(usages)]
    with store.run("paid").writer() as writer:
        commit(store, writer, "paid", 1, "candidates", to_table([_candidate(k) for k in range(4)], CANDIDATES))
        commit(store, writer, "paid", 1, "judgments", to_table(judged, ASKED_JUDGMENTS))
    shown = page(visitor(Site(store)), "/run/paid/prompt/t0")
    cards = [words(shown.partition(f'id="completion-{k}"')[2].partition("</article>")[0]) for k in range(4)]
    assert "Paid for: 2 of 3 replies, tokens 180 in, 20 out, cost 0.0125." in cards[0]
    assert (
        "From the cache: 1.5 of 1.5 replies, with the time that they took when they were asked for (tokens 135 in, 15 "
        "out then). A reply about several completions counts for each by its part." in cards[1]
    )
    assert "Paid for: 1 of 1 replies, tokens not measured in, not measured out." in cards[2]
    assert "Nothing was asked: 0 replies." in cards[3]


def test_replies_are_read_in_the_form_of_their_judge_alone() -> None:
    def row(raw: str) -> dict[str, Any]:
        return {"components": [], "raw": raw}

    listwise = LlmConfig.model_validate({**ENDPOINT, "mode": "listwise"})
    rubric = LlmConfig.model_validate({**ENDPOINT, "mode": "rubric"})
    order = '[{"shown": [2, 0, 1], "reply": "C, A, B"}]'
    assert evidence(row(order), listwise).replies == [("shown in the order 2, 0, 1", "C, A, B")]
    assert evidence(row(order), rubric).replies == [("", order)]  # what the model wrote itself
    assert evidence(row('[{"shown": 1}]'), listwise).replies == [("", '[{"shown": 1}]')]
    said = '[{"labeller": "ada", "choice": "tie", "better": null}]'
    assert evidence(row(said), HumanConfig(kind="human")).replies == [("ada says", "tie")]
    assert evidence({"components": [], "raw": None}, None).replies == []


def test_every_judge_of_a_held_out_completion_is_there(browser: TestClient) -> None:
    shown = words(page(browser, "/run/small/prompt/e1?round=2"))
    assert "vader: 0.4. </div><script>alert(1)</script>" in shown
    assert "grammar: 0.9" in shown


def test_implicit_rewards_are_beta_times_the_change_against_the_reference(browser: TestClient) -> None:
    """Of e1 in round 2: log pi is -3 now, -3.11 by the round before, which is the reference; beta is 0.1.

    Of t1's completion 3 the probe has -2.5 after and -3.25 before the update: 0.1 times 0.75.
    """
    held_out = page(browser, "/run/small/prompt/e1?round=2&kind=held-out")
    assert table(held_out, EFFECTS) == [["0", "-3.000", "-3.110", "-3.000", "-3.110", "+0.0000", "+0.0110"]]
    training = table(page(browser, "/run/small/prompt/t1?round=2&kind=training"), EFFECTS)
    assert training[0] == ["3", "-3.000", "-3.250", "-2.500", "-3.250", "+0.0000", "+0.0750"]
    assert training[1] == ["2", "-3.000", *["not measured"] * 5]


def test_the_loss_of_one_preference_is_not_made_up(browser: TestClient) -> None:
    """Means of the steps: of the last, 3, the loss is ln 2 - 0.15, the rewards are 0.15 and -0.15, in order are 80%."""
    shown = words(page(browser, "/run/small/prompt/t1?round=2&kind=training"))
    assert (
        "The loss of a single preference is not measured in this round. In the first step (0) the loss was 0.6931 on "
        "average" in shown
    )
    assert "in the last (3) the loss was 0.5431 on average, the implicit reward +0.15 of chosen and -0.15" in shown
    assert "80.0% of the pairs were in order." in shown
    assert "Round 0 has no update." in page(browser, "/run/small/prompt/e1?round=0")
    assert "The steps of the round are not measured." in page(browser, "/run/compared/prompt/t0")


def test_a_preference_that_was_measured_has_its_own_loss(browser: TestClient) -> None:
    """Of completion 3, -3 before and -2.5 after: 0.1 times 0.5; of 0, -4 and -4.5. Of the others nothing is known."""
    shown = page(browser, "/run/small/prompt/t1?round=3&kind=training")
    (row,) = table(shown, "Preferences of this prompt")
    assert [row[0], *row[-2:]] == ["3 > 0", "0.6931", "0.6444"]
    effects = table(shown, EFFECTS)
    assert effects[0] == ["3", "-3.000", "-3.000", "-2.500", "-3.000", "+0.0000", "+0.0500"]
    assert effects[3] == ["0", "-3.000", "-4.000", "-4.500", "-4.000", "+0.0000", "-0.0500"]
    assert effects[1] == ["2", "-3.000", *["not measured"] * 5]
    assert "1 preference of this round was measured: t1" in words(shown)
    (other,) = table(page(browser, "/run/small/prompt/t2?round=3&kind=training"), "Preferences of this prompt")
    assert other[-2:] == ["not measured", "not measured"]


def test_a_slider_leads_through_the_rounds_and_all_answers_stand_beneath(browser: TestClient) -> None:
    shown = page(browser, "/run/small/prompt/e1?round=2&kind=held-out")
    assert 'href="/run/small/prompt/e1?round=1&amp;kind=held-out" rel="prev"' in shown
    assert 'href="/run/small/prompt/e1?round=3&amp;kind=held-out" rel="next"' in shown
    assert 'rel="next"' not in page(browser, "/run/small/prompt/e1")  # the last round
    rows = table(shown, "Completions over the rounds")
    assert [row[:4] for row in rows] == [[str(n), "held-out", "0", f"{0.2 * n:.4g}"] for n in range(4)]


def test_the_same_stands_in_sql_and_in_the_terminal(browser: TestClient, root: Path) -> None:
    shown = page(browser, "/run/small/prompt/t1?round=2&kind=training")
    sql, command = statements(shown)
    rows = queries.sql("small", str(root), sql)
    assert [(row["candidate"], row["text"]) for row in rows] == [
        (index, f"{say(2, 't1', index)} **bold** of") for index in range(4)
    ]  # fmt: skip
    assert command.splitlines() == [
        f"rondo show small@2 --table completions --prompt t1 --full --root {root}",
        f"rondo history small t1 --full --root {root}",
    ]
    answers = queries.history("small", str(root), "e1")[1]
    beneath = table(page(browser, "/run/small/prompt/e1"), "Completions over the rounds")
    assert [row[-1] for row in beneath] == [words(row["text"]) for row in answers]


@pytest.mark.parametrize("markdown", [False, True])
def test_hostile_texts_stay_text_and_a_page_with_a_million_letters_stays_small(
    browser: TestClient, markdown: bool
) -> None:
    shown = page(browser, "/run/small/prompt/t2?round=1&kind=training" + ("&markdown=1" if markdown else ""))
    tags, attributes = elements(shown)
    assert tags.isdisjoint({"img", "iframe", "object", "embed", "style", "base"})
    assert attributes.isdisjoint({"style", "onerror", "onload"})
    assert shown.count("<script") == 1  # our own
    assert all(target.startswith(("/", "#")) for target in links(shown))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [a](javascript:b) ![c](http://d.e/f.png) \\x1b[31m\\u202e" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown.encode()) < MILLION / 2
    assert f"of {MILLION + len(HOSTILE) + 3:,} characters" in shown


def test_one_completion_can_be_shown_whole(browser: TestClient) -> None:
    shown = page(browser, "/run/small/prompt/t2?round=1&kind=training&candidate=2")
    assert "x" * MILLION in shown
    assert 'class="card completion  asked" id="completion-2"' in shown


def test_markdown_is_rendered_on_demand(browser: TestClient) -> None:
    address = "/run/small/prompt/t1?round=2&kind=training"
    assert "<strong>bold</strong>" not in page(browser, address)
    assert "<strong>bold</strong> of" in page(browser, f"{address}&markdown=1")
    assert "<ins>" not in page(browser, f"{address}&markdown=1")


def test_a_thought_is_folded_and_the_answer_is_compared(browser: TestClient) -> None:
    shown = page(browser, "/run/thinks/prompt/t1")
    assert "<ins>other </ins>answer" in shown
    assert "<del>same </del>answer" in shown
    cards = {number: shown.partition(f'id="completion-{number}"')[2].partition("</article>")[0] for number in range(4)}
    thought = re.search(r"<details>(.*?)</details>", cards[1], re.DOTALL)
    assert thought is not None
    assert words(thought[1]) == "The thought of completion 1, 13 characters hm 1 </think>"
    assert words(cards[1].replace(thought[0], "")).count("hm 1") == 0
    assert "The answer after the thought: other answer" in words(cards[1])
    assert "vader saw the answer alone." in words(cards[1])
    assert "No answer follows the thought." in words(cards[2])
    assert '<div class="text">hm 3</div>' in cards[3]
    assert "thought" not in words(cards[3])


def test_whether_a_judge_saw_the_thought_is_as_its_settings_say() -> None:
    row = {"components": [], "raw": None}
    sees = LlmConfig.model_validate({**ENDPOINT, "mode": "rubric", "criteria": "good", "sees_thought": True})
    assert evidence(row, sees).sees_thought is True
    assert evidence(row, None).sees_thought is None


def test_each_text_that_is_cut_says_so(browser: TestClient) -> None:
    """The question, the reference answer, the text as the policy reads it, and the reason of a judge."""
    shown = words(page(browser, "/run/thinks/prompt/t1"))
    assert shown.count(f"of {MILLION + 1:,} characters.") == 2
    assert shown.count(f"of {MILLION:,} characters.") == 2


def test_a_page_renders_so_many_letters_as_markdown() -> None:
    """Of 100,000 letters, of texts of 20,000 of which ten come: five."""
    texts = Texts(20_000, markdown=True)
    found = [str(texts("**b** " * 4_000)) for _ in range(10)]
    assert ["<strong>" in text for text in found] == [True] * 5 + [False] * 5
    assert all("As text: a page renders 100,000 letters as Markdown." in text for text in found[5:])


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("/run/small/prompt/none", 404, "has no prompt 'none'"),
        ("/run/small/prompt/e1?round=9", 404, "prompt e1 was not answered in round 9, but in round 0, 1, 2, 3"),
        ("/run/small/prompt/e1?kind=training", 404, "prompt e1 was not answered as training, but in round 0, 1, 2, 3"),
        ("/run/small/prompt/e1?kind=../x", 400, "there is no kind '../x' of completions"),
        ("/run/small/prompt/e1?round=99999999999", 400, "less than or equal to"),
        ("/run/small/prompt/e1%00'%22--", 404, "has no prompt"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(browser: TestClient, address: str, status: int, sentence: str) -> None:
    answer = browser.get(address)
    assert answer.status_code == status
    assert sentence in words(answer.text)
