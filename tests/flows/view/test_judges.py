"""The page of the judges: disagreements, verdicts that turn, those without a score, and what leads to samples."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from starlette.testclient import TestClient

from flows.analysis import queries
from flows.registry.judge_usage import usage_meta
from flows.view.site import Site
from pipeline.evaluation.round_metrics import RoundMetrics
from pipeline.records import CANDIDATES, JUDGMENTS, to_table
from pipeline.usage import Usage
from storage.log.manifest import Key
from storage.log.store import Store
from support.finished_run import commit, finished_run, small_recipe
from support.view_pages import links, statements, table, visitor, words

DIFFER = "Completions on which the judges differ most"
TURNED = "Prompts whose verdicts turn with the order"
UNSCORED = "Verdicts without a score"
TOOK = "What language models took"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    store = Store.open(root)
    finished_run(
        store,
        rounds=2,
        changes={
            "agreement": {"grammar": 0.375},
            "judge_drift": {"vader": -0.25},
            "drifted": ["vader changed"],
            "length_correlation": 0.5,
        },
    )
    with store.run("small").writer() as writer:
        _round_at_work(store, writer)
    verdicts = small_recipe(
        judge={"kind": "regex", "name": "vader", "pattern": "a"},
        evaluation={"prompts": 5, "judges": [{"kind": "regex", "name": "grammar", "pattern": "b"}]},
    )
    finished_run(store, "verdicts", rounds=0, recipe=verdicts)
    with store.run("verdicts").writer() as writer:
        _verdicts(store, writer)
    return root


def _round_at_work(store: Store, writer: Any) -> None:
    """Round 3, in which the judge compared the completions of two prompts, and the held-out judges see four prompts.

    Of t0 every second comparison turned, of t1 one of four; one completion of t1 could not be judged.
    """
    pairs = {"t0": (1.0, 2.0, ["ok", "ok"]), "t1": (0.5, 2.0, ["ok", "unparsable"])}
    judged = [
        _judgment(prompt, index, "vader", float(index), status, flips=flips, comparisons=comparisons)
        for prompt, (flips, comparisons, statuses) in pairs.items()
        for index, status in enumerate(statuses)
    ]
    scores = {"e0": (4.0, 10.0), "e1": (3.0, 20.0), "e2": (2.0, 30.0), "e3": (1.0, 30.0)}
    held_out = [
        _judgment(prompt, 0, judge, score)
        for prompt, found in scores.items()
        for judge, score in zip(("vader", "grammar"), found, strict=True)
    ]
    held_out += [_judgment("e4", 0, "vader", 9.0), _judgment("e4", 0, "grammar", 0.0, "refused")]
    commit(
        store, writer, "small", 3, "candidates", _candidates([(prompt, index) for prompt in pairs for index in (0, 1)])
    )
    commit(store, writer, "small", 3, "judgments", to_table(judged, JUDGMENTS))
    commit(store, writer, "small", 3, "eval_candidates", _candidates([(prompt, 0) for prompt in (*scores, "e4")]))
    commit(store, writer, "small", 3, "eval_judgments", to_table(held_out, JUDGMENTS))


def _verdicts(store: Store, writer: Any) -> None:
    """Round 1, whose two held-out judges say right or wrong; they say the opposite of e3 alone."""
    said = {"e0": (1.0, 1.0), "e1": (0.0, 0.0), "e2": (0.0, 0.5), "e3": (0.0, 1.0)}
    rows = [_judgment(p, 0, j, s) for p, both in said.items() for j, s in zip(("vader", "grammar"), both, strict=True)]
    commit(store, writer, "verdicts", 1, "eval_candidates", _candidates([(prompt, 0) for prompt in said]))
    commit(store, writer, "verdicts", 1, "eval_judgments", to_table(rows, JUDGMENTS))


def _candidates(keys: list[tuple[str, int]]) -> Any:
    return to_table([
        {
            "prompt_id": prompt, "candidate": index, "token_ids": [1, 2], "logprobs": [-1.0, -1.0], "seed": 0,
            "text": f"<i>{prompt}</i> {index}", "finish_reason": "stop", "policy": "policy2",
        }
        for prompt, index in keys
    ], CANDIDATES)  # fmt: skip


def _judgment(
    prompt: str, index: int, judge: str, score: float, status: str = "ok", **components: float
) -> dict[str, Any]:  # fmt: skip
    return {
        "prompt_id": prompt, "candidate": index, "score": score if status == "ok" else None, "score_std": None,
        "components": [{"name": name, "value": value} for name, value in components.items()], "rationale": None,
        "judge": judge, "judge_version": "1", "status": status, "latency": 0.0, "raw": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser(root: Path) -> TestClient:
    return visitor(Site(Store.open(root)))


def page(browser: TestClient, address: str = "/run/small/judges") -> str:
    answer = browser.get(address)
    assert answer.status_code == 200, words(answer.text)
    return answer.text


def test_the_largest_difference_of_place_comes_first(browser: TestClient) -> None:
    """Of four answers, by vader e0 is above three others, 100%, and by grammar above none.

    Grammar sees e2 and e3 as equal: each is above two of three others, and half of the third, 83.3%. By vader e3 is
    the last, e2 is above one, 33.3%, and e1 above two, 66.7%; grammar has e1 above e0 alone, 33.3%. The answer to e4,
    which grammar refused, has no place. What e0 to e3 were given in rounds 0 to 2 is the same everywhere: 0.9.
    """
    rows = table(page(browser, "/run/small/judges?round=3&kind=held-out&a=vader&b=grammar"), DIFFER)
    assert [[row[0], *row[2:5]] for row in rows] == [
        ["e0", "4", "10", "100.0%, 0.0%"],
        ["e3", "1", "30", "0.0%, 83.3%"],
        ["e2", "2", "30", "33.3%, 83.3%"],
        ["e1", "3", "20", "66.7%, 33.3%"],
    ]
    assert rows[0][5] == "<i>e0</i> 0"  # as text


def test_opposite_verdicts_come_before_all_differences(browser: TestClient) -> None:
    shown = page(browser, "/run/verdicts/judges?round=1")
    rows = table(shown, DIFFER)
    assert rows[0][0] == "e3 opposite"
    assert not any("opposite" in row[0] for row in rows[1:])
    assert "Opposite verdicts come first" in shown
    assert "opposite" not in table(page(browser), DIFFER)[0][0]


def test_verdicts_that_turn_are_counted_once_for_each_comparison(browser: TestClient, root: Path) -> None:
    """Both completions count each comparison: of t0 1 + 1 of 2 + 2, which are 1 of 2; of t1 0.5 of 2."""
    shown = page(browser)
    assert table(shown, TURNED) == [
        ["t0", "3", "training", "vader", "1", "2"],
        ["t1", "3", "training", "vader", "0.5", "2"],
    ]
    assert ">t0<" not in page(browser, "/run/small/judges?round=2")
    run = Store.open(root).run("small")
    metrics = RoundMetrics()
    (candidates, judgments) = (_table(root, run, stage) for stage in ("candidates", "judgments"))
    metrics.add_judged(candidates, judgments)
    by_round = table(shown, "Judges by round")
    assert by_round[3][2] == f"{metrics.metrics()['flipped']:.1%}" == "37.5%"


def _table(root: Path, run: Any, stage: str) -> Any:
    from storage.queries.round_query import table as read

    return read(Store.open(root), run, 3, stage)


def test_each_round_has_what_was_measured_and_nothing_else(browser: TestClient) -> None:
    """Round 2's summary was given these numbers; round 0 has no update, and round 3 is not finished."""
    rows = table(page(browser), "Judges by round")
    assert rows[2][1:] == ["37.5%", "not measured", "+0.500", "-0.25", "none"]
    assert rows[3][1:] == ["not measured", "37.5%", "not measured", "not measured", "2"]
    assert "Round 2: vader changed" in words(page(browser))
    assert "Drift is not measured" in page(browser, "/run/verdicts/judges")


def test_each_number_leads_to_its_samples(browser: TestClient) -> None:
    found = links(page(browser))
    for target in (
        "/run/small/judges?round=2&kind=held-out&a=vader&b=grammar#disagreements",
        "/run/small/judges?round=3#flips",
        "/run/small/completions?round=2&kind=training&sort=length",
        "/run/small/prompt/e0?round=3&kind=held-out&candidate=0",
        "/run/small/prompt/t0?round=3&kind=training",
    ):
        assert target in found


def test_each_link_finds_what_it_is_of(browser: TestClient, root: Path) -> None:
    """Each page that is led to has rows; what one judge said of some completions, as many as its number says.

    Refused was an answer by grammar, whose verdicts are not those that count; vader moved on the five of round 0.
    """
    shown = page(browser)
    targets = [target.partition("#")[0] for target in links(shown) if "?" in target]
    assert len(set(targets)) > 10
    for target in set(targets):
        answer = browser.get(target)
        assert answer.status_code == 200, target
        assert re.search(r"<tr[ >].*?<td", answer.text.partition("<tbody>")[2], re.DOTALL), target
    asked = [parse_qs(target.partition("?")[2])["sql"][0] for target in targets if "/ask?" in target]
    found = [queries.sql("small", str(root), sql) for sql in asked]
    assert [[row["prompt_id"] for row in rows] for rows in found] == [["e0", "e1", "e2", "e3", "e4"], ["e4"], ["t1"]]
    assert [(row["judge"], row["status"], row["score"]) for row in found[1]] == [("grammar", "refused", None)]


def test_the_same_stands_in_sql(browser: TestClient, root: Path) -> None:
    shown = page(browser, "/run/small/judges?round=3")
    disagreements, command, turned, _, unscored, _ = statements(shown)
    rows = queries.sql("small", str(root), disagreements)
    assert [[row["prompt_id"], f"{row['place_a']:.1%}, {row['place_b']:.1%}"] for row in rows] == [
        [row[0], row[4]] for row in table(shown, DIFFER)
    ]  # fmt: skip
    quoted = "'judge IN ('\"'\"'vader'\"'\"', '\"'\"'grammar'\"'\"')'"
    assert command == f"rondo show small@3 --table eval_judgments --where {quoted} --root {root}"
    assert [[row["prompt_id"], f"{row['flips']:g}"] for row in queries.sql("small", str(root), turned)] == [
        [row[0], row[4]] for row in table(shown, TURNED)
    ]  # fmt: skip
    found = [
        [row["status"], str(row["round"]), row["kind"], row["judge"], str(row["completions"])]
        for row in queries.sql("small", str(root), unscored)
    ]
    assert found == table(shown, UNSCORED) == [
        ["refused", "3", "held-out", "grammar", "1"], ["unparsable", "3", "training", "vader", "1"],
    ]  # fmt: skip


def test_runs_of_one_judge_and_of_none_say_what_is_missing(root: Path) -> None:
    store = Store.open(root)
    recipe = small_recipe(evaluation={"prompts": 5, "judges": []})
    run = finished_run(store, "alone", rounds=0, recipe=recipe)
    fresh = store.create_run("fresh", dict(run.header))
    assert not fresh.finished
    browser = visitor(Site(store))
    said = words(page(browser, "/run/fresh/judges"))
    assert "no completions of this run were scored by two judges" in said
    assert "None: each completion that was judged has a score." in said
    assert "no judge of this run compares two completions in both orders" in said


@pytest.mark.parametrize(
    "query", ["a=vader&b=vader", "a=none", "kind=training", "kind=other", "round=-1", "a=';DROP TABLE judgments--"]
)
def test_what_cannot_be_compared_is_said_in_a_sentence(browser: TestClient, query: str) -> None:
    answer = browser.get(f"/run/small/judges?{query}")
    assert answer.status_code == 400
    assert "Traceback" not in answer.text


def test_what_language_models_took_is_said_of_each_round_and_judge(tmp_path: Path) -> None:
    """Round 1 has two shards, of 3 and of 2 replies, one of which was there; the held-out ones cost 0.25 more.

    Of round 2 the endpoint did not state the tokens of one shard.
    """
    store, price = Store.open(tmp_path), {"input": 1.0, "output": 2.0}
    endpoint = {"kind": "llm", "name": "vader", "model": "m", "base_url": "http://127.0.0.1:9/v1", "mode": "rubric"}
    finished_run(store, "asked", rounds=0, recipe=small_recipe(judge={**endpoint, "price_per_million": price}))
    finished_run(store, "free", rounds=0, recipe=small_recipe(judge=endpoint))
    shards = [(3.0, 1.0, 180.0, 20.0, 0.5), (2.0, 0.0, 180.0, 20.0, 0.5)]
    for name in ("asked", "free"):
        with store.run(name).writer() as writer:
            for number, stage, shard, found in (
                (1, "judgments", 0, shards[0]), (1, "judgments", 1, shards[1]),
                (1, "eval_judgments", 0, (1.0, 0.0, 90.0, 10.0, 0.25)),
                (2, "judgments", 0, shards[0]), (2, "judgments", 1, (2.0, 0.0, None, None, None)),
            ):  # fmt: skip
                fields = ("replies", "replies_cached", "paid_tokens_in", "paid_tokens_out", "cost")
                usage = Usage(**dict(zip(fields, found, strict=True)))
                writer.commit(Key(number, stage, shard), [], usage_meta({"vader": usage}))
    browser = visitor(Site(store))
    assert table(page(browser, "/run/asked/judges"), TOOK) == [
        ["1", "vader", "6", "1", "450", "50", "1.25"],
        ["2", "vader", "5", "1", "not measured", "not measured", "not measured"],
    ]
    finished_run(store, "done", rounds=1, changes={"judge_usage": {"vader": asdict(Usage(replies=6, cost=1.25))}})
    (sql,) = [said for said in statements(page(browser, "/run/asked/judges")) if "judge_usage" in said]
    rows = queries.sql("done", str(tmp_path), sql)
    assert rows[0]["judge_usage"] in ({"vader": None}, "{}", {})
    assert (rows[1]["judge_usage"]["vader"]["replies"], rows[1]["judge_usage"]["vader"]["cost"]) == (6, 1.25)
    free = page(browser, "/run/free/judges")
    assert table(free, TOOK)[0] == ["1", "vader", "6", "1", "450", "50"]
    assert "The recipe gives no price" in words(free)


def test_rounds_that_did_not_record_it_took_no_nothing(browser: TestClient, tmp_path: Path) -> None:
    assert "Nothing: no judge of this run asks a language model." in words(page(browser))
    store = Store.open(tmp_path)
    endpoint = {"kind": "llm", "name": "vader", "model": "m", "base_url": "http://127.0.0.1:9/v1", "mode": "rubric"}
    finished_run(store, "old", rounds=1, recipe=small_recipe(judge=endpoint))
    shown = words(page(visitor(Site(store)), "/run/old/judges"))
    assert "Not measured: these rounds are of a version that did not record it." in shown
