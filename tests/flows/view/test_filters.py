"""Filters of completions: what an address means, and that page, SQL and command have the same rows."""

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.view.filters import FIELDS, Filter, literal
from flows.view.pages.completions import page
from flows.view.site import OpenRun, Site
from flows.view.statements import Statements
from flows.view.tables import JudgeOrder
from pipeline.errors import ConfigError
from storage.log.store import Store
from storage.queries.sql import select
from support.sampled_run import LIMIT, ROWS, THIRD, Row, found, key_of, sampled_run, training

# What each filter finds, said by hand of the rows that were written.
FILTERS: dict[str, Callable[[Row], bool]] = {
    "": lambda _row: True,
    "round=1": lambda row: row["round"] == 1,
    "round=0&kind=training": lambda _row: False,
    "kind=held-out": lambda row: row["kind"] == "held-out",
    "kind=training&round=1": lambda row: row["kind"] == "training" and row["round"] == 1,
    "q=red": lambda row: "red" in row["text"].lower(),
    "q=apple+RED&round=1&kind=training": lambda row: row["text"] in ("Red apples", "apple red"),
    "q=räder+ÄRGER": lambda row: row["text"] == "Ärger über RÄDER",
    "q=it's+100%25+a_b&kind=training&round=1": lambda row: "100%" in row["text"],
    "q=a.b": lambda _row: False,
    "role=chosen": lambda row: (row["prompt_id"], row["score"]) in {("t0", 1.0), ("t0", 0.75)},
    "role=rejected": lambda row: row["prompt_id"] == "t0" and row["score"] == 0.0,
    "role=dropped": lambda row: row["prompt_id"] in ("t1", "t2"),
    "role=-": lambda row: (
        row["kind"] == "held-out" or (row["prompt_id"] == "t0" and row["score"] not in (1.0, 0.75, 0.0))
    ),
    "drop=agree": lambda row: row["prompt_id"] == "t1",
    "drop=unjudged": lambda row: row["prompt_id"] == "t2",
    "tie=yes": lambda row: row["prompt_id"] == "t1",
    "tie=no": lambda row: row["prompt_id"] == "t0",
    "tie=-": lambda row: row["kind"] == "held-out" or row["prompt_id"] == "t2",
    "finish=length": lambda row: row["tokens"] == LIMIT,
    "finish=stop&round=1&kind=held-out": lambda row: row["round"] == 1 and row["kind"] == "held-out",
    "status=unparsable": lambda row: row["score"] is None,
    "status=unparsable&round=1&kind=training": lambda row: row["score"] is None,
    "judge=vader": lambda _row: True,
    "judge=grammar": lambda _row: False,
    f"score_min={THIRD}": lambda row: row["score"] is not None and row["score"] >= THIRD,
    f"score_min={THIRD}&score_max={THIRD}&round=1&kind=training": lambda row: row["score"] == THIRD,
    "score_max=0.3": lambda row: row["score"] is not None and row["score"] <= 0.3,
    "length_min=4&length_max=6": lambda row: 4 <= row["tokens"] <= 6,
    "length_max=2.5&round=2&kind=training": lambda row: row["round"] == 2 and row["tokens"] <= 2.5,
    "margin_min=0.8": lambda row: (row["round"], row["prompt_id"]) == (1, "t0") and row["score"] in (1.0, 0.0),
    "margin_max=0.8": lambda row: row["round"] == 2 and row["score"] in (0.75, 0.0),
    "ratio_min=-2&ratio_max=0": lambda row: row["log_ratio"] == -1.5,
    "q=apples&tie=no&role=chosen&score_min=1e-3&judge=vader&sort=text": lambda row: row["text"] == "Red apples",
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRun]:
    store = Store.open(tmp_path_factory.mktemp("filters"))
    sampled_run(store)
    site = Site(store)
    yield site.run("sampled")
    site.close()


def parse(query: str) -> Filter:
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    return Filter.parse([(name, value.replace("+", " ").replace("%25", "%")) for name, value in pairs])


def keys(rows: list[Any]) -> list[tuple[int, str, str, int]]:
    return [key_of(row) for row in rows]


@pytest.mark.parametrize("query", FILTERS)
def test_page_and_sql_have_the_rows_that_fit(opened: OpenRun, query: str) -> None:
    shown = page(opened, parse(query)).values
    expected = found(FILTERS[query])
    assert set(keys(shown["rows"])) == expected
    assert len(shown["rows"]) == shown["total"] == len(expected)
    rows = select(opened.store, opened.run, shown["sql"]).to_pylist()
    assert keys(rows) == keys(shown["rows"])
    assert [(row["score"], row["tokens"]) for row in rows] == [(row["score"], row["tokens"]) for row in shown["rows"]]


@pytest.mark.parametrize("query", [query for query in FILTERS if query.count("&") > 1 or "kind=training" in query])
def test_the_command_gives_the_same_rows(opened: OpenRun, query: str) -> None:
    asked = parse(query)
    command = page(opened, asked).values["command"]
    name, *arguments = shlex.split(command)
    assert name == "rondo"
    expected = found(FILTERS[query])
    simple = {"round", "kind"} <= set(asked.chosen) and bool(expected)
    assert arguments[0] == ("show" if simple else "sql")
    result = CliRunner().invoke(app, [*arguments, "--format", "json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    of_round = {"round": asked.chosen["round"], "kind": asked.chosen["kind"]} if simple else {}
    assert set(keys([{**row, **of_round} for row in json.loads(result.stdout)])) == expected


@pytest.mark.parametrize("name", FIELDS)
def test_each_column_sorts_both_ways_and_what_lacks_it_comes_last(opened: OpenRun, name: str) -> None:
    column = FIELDS[name].column
    for down in (False, True):
        asked = Filter(sort=name, down=down)
        stages = {"candidates", "eval_candidates", "judgments", "eval_judgments", "preferences", "eval_logps"}
        statements = Statements(opened.name, "", stages, JudgeOrder(["vader", "grammar"]))
        rows = opened.tables.ask(f"SELECT * FROM answers ORDER BY {asked.order(column)}")  # noqa: S608
        assert keys(page(opened, asked).values["rows"]) == keys(rows)
        assert keys(select(opened.store, opened.run, statements.sql(asked) or "").to_pylist()) == keys(rows)
        values = [row[column] for row in rows]
        known = [value for value in values if value is not None]
        assert values[: len(known)] == known
        assert known == sorted(
            known, key=lambda value: value.encode() if isinstance(value, str) else value, reverse=down
        )


def test_a_statement_leaves_out_tables_that_the_run_has_not() -> None:
    """Round 0 alone: no preference, and no log-ratio."""
    store = Store.open("memory://")
    run = sampled_run(store, [row for row in ROWS if row["round"] == 0])
    opened = Site(store).run(run.name)
    for query, count in {"": 2, "role=chosen": 0, "role=-": 2, "ratio_min=0": 0, "sort=-margin": 2, "tie=-": 2}.items():
        shown = page(opened, parse(query)).values
        assert len(shown["rows"]) == count
        assert keys(select(store, run, shown["sql"]).to_pylist()) == keys(shown["rows"])
    assert page(opened, parse("kind=served")).values["sql"] is None
    assert page(opened, parse("kind=served")).values["command"] is None


def test_pages_follow_each_other_and_sql_has_the_same_page() -> None:
    store = Store.open("memory://")
    rows = [row for n in range(30) for row in training(1, f"t{n:02}", *((f"w{k}", k + 1, k / 4) for k in range(4)))]
    run = sampled_run(store, rows)
    opened = Site(store).run(run.name)
    seen = []
    for number, (size, previous, following) in enumerate([(50, None, "2"), (50, {}, "3"), (20, "2", None)], 1):
        shown = page(opened, parse(f"sort=score&page={number}")).values
        assert shown["total"] == 120
        assert len(shown["rows"]) == size
        assert shown["next"] == (following and {"sort": "score", "page": following})
        assert shown["previous"] == (
            None if previous is None else {"sort": "score", **({"page": previous} if previous else {})}
        )
        assert keys(select(store, run, shown["sql"]).to_pylist()) == keys(shown["rows"])
        seen += keys(shown["rows"])
    assert len(set(seen)) == 120
    assert page(opened, parse("page=4")).values["rows"] == []


def test_an_address_comes_back_from_the_filter_that_it_made() -> None:
    for query in (*FILTERS, "sort=score&page=3", "sort=-text"):
        asked = parse(query)
        assert Filter.parse(asked.query.items()) == asked
    assert parse("").query == {}
    assert parse("sort=-round&page=1&q=++&score_min=").query == {}
    asked = parse("q=a&round=1&score_min=2&page=4&sort=score")
    assert asked.with_("kind", "training").query == {
        "q": "a", "round": "1", "kind": "training", "score_min": "2", "sort": "score",
    }  # fmt: skip
    assert asked.without("q", "round", "score_min").query == {"sort": "score"}
    assert [asked.sorted_by("score").query["sort"], asked.sorted_by("text").query["sort"]] == ["-score", "-text"]
    assert asked.sorted_by("score").sorted_by("score").query["sort"] == "score"


def test_a_search_has_each_word_once() -> None:
    """An address of hundreds of words would be looked for in each completion hundreds of times."""
    assert parse("q=" + "+".join(["b", "A", "a", "B"] * 100)).words == ("b", "A")
    assert len(parse("q=" + "+".join(f"w{n}" for n in range(16))).words) == 16


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("round=one", "round 'one' in the address: give a whole number from 0"),
        ("round=-3", "round '-3' in the address: give a whole number from 0"),
        ("round=99999999999", "give a whole number"),
        ("kind=test", "kind 'test' in the address: it is training, held-out, served"),
        ("role=best", "role 'best' in the address: it is chosen, rejected, dropped"),
        ("tie=maybe", "tie 'maybe' in the address: it is yes, no"),
        ("score_min=high", "score_min 'high' in the address: give a number, such as 0.5"),
        ("score_max=nan", "score_max 'nan' in the address: give a number, such as 0.5"),
        ("ratio_min=inf", "ratio_min 'inf' in the address"),
        ("sort=colour", "sort 'colour' in the address: it is prompt, text, round"),
        ("page=x", "page 'x' in the address"),
        ("q=a\0b", "leave the null character out"),
        ("q=" + "+".join(f"w{n}" for n in range(17)), "q in the address has 17 different words"),
        ("q=" + "x" * 201, "201 letters: search for up to 16 words and 200 letters"),
        ("colour=red", "'colour' in the address is no filter: they are q, round, kind"),
        ("round=1&round=2", "'round' in the address comes twice"),
    ],
)
def test_what_is_mistyped_is_said_in_one_sentence(query: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(query)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_in_sql_is_the_very_same_number() -> None:
    store = Store.open("memory://")
    run = sampled_run(store)
    for value in (THIRD, 0.1, 1 / 3, 1e-9, -2.5, 123456789.123456789, 5e-324, 1.7976931348623157e308, 4.0, 1e22):
        (row,) = select(store, run, f"SELECT {literal(value)}::DOUBLE AS x FROM prompts LIMIT 1").to_pylist()  # noqa: S608
        assert row["x"] == value
    assert (literal("it's"), literal(True), literal(3)) == ("'it''s'", "true", "3")
