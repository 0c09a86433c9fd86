"""Questions in SQL in the browser: saved ones, what a row leads to, charts, and what is refused or stopped."""

import html
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows.cli.main import app as commands
from flows.view.app import make_app
from flows.view.charts import answer_chart
from flows.view.pages import ask as ask_page
from flows.view.questions import QUESTIONS, questions_for
from flows.view.security import Guard
from flows.view.site import Site
from pipeline.errors import ConfigError
from pipeline.records import JUDGMENTS, PREFERENCES, to_table
from storage.errors import QueryError
from storage.log.store import Store
from storage.queries.duckdb import Limits
from storage.queries.sql import columns_of, select
from support.finished_run import commit, finished_run

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egnp.exe"
ENDLESS = "select count(*) from range(10000000) a, range(10000000) b where a.range % 7 = b.range % 3"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("root"))
    finished_run(
        store,
        text=lambda number, prompt, index: HOSTILE * (20_000 if index == 3 else 1) if prompt == "t1" else "again",
        cut={("t0", 0), ("t0", 1), ("t2", 3)},
    )
    return store


@pytest.fixture(scope="module")
def visitor(store: Store) -> TestClient:
    return TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")


def asked(visitor: TestClient, sql: str, **more: object) -> str:
    answer = visitor.get("/run/small/ask", params={"sql": sql, **more})
    assert answer.status_code == 200, answer.text.partition('class="problem"')[2][:500]
    return answer.text


def refused(visitor: TestClient, sql: str, **more: object) -> str:
    answer = visitor.get("/run/small/ask", params={"sql": sql, **more})
    assert answer.status_code == 400
    return html.unescape(answer.text.partition('class="problem"')[2].partition("</p>")[0])


def test_a_saved_question_is_shown_in_its_form(visitor: TestClient) -> None:
    """Two of them have nothing to draw here: no verdict failed, and all preferences are of equal lengths."""
    for question in QUESTIONS:
        answer = visitor.get("/run/small/ask", params={"sql": question.sql, "as": question.form})
        if question.title == "How alike two judges score: their correlation":  # one of them says 0.9 of everything
            assert "nothing to draw" in answer.text
            continue
        assert answer.status_code == 200
        assert 'aria-current="true"' in answer.text
        assert ("<picture>" in answer.text) == (question.form in ("line", "scatter") and "longer" not in question.title)


def test_saved_questions_say_what_is_so(store: Store) -> None:
    """By hand: of 12 completions 3 were cut; no drop; scores are 0.1 round (1 + prompt) + 0.01 index, -round for e2."""
    run = store.run("small")
    answers = {question.title: select(store, run, question.sql).to_pylist() for question in QUESTIONS}
    assert [row["truncated"] for row in answers["Share of completions that were cut at the limit"]] == [0.25] * 3
    assert answers["Why prompts gave no preference"] == answers["Verdicts that are none"] == []
    worse = answers["Held-out prompts that got worse"]
    assert [(row["prompt_id"], row["round"], round(row["change"], 9)) for row in worse] == [("e2", 3, -0.9)]
    rewards = {
        (row["round"], row["judge"]): row for row in answers["Held-out reward by round, with its standard error"]
    }
    # Round 3: 0.3, 0.6, -0.9, 1.2 and 1.5; their mean is 0.54 and their sample variance (3.0276 + ...) = 0.963.
    assert rewards[3, "vader"]["reward"] == pytest.approx(0.54)
    assert rewards[3, "vader"]["error"] == pytest.approx((0.873 / 5) ** 0.5)
    assert rewards[2, "grammar"] == {"round": 2, "reward": pytest.approx(0.9), "judge": "grammar", "error": 0.0}
    same = answers["Share of prompts whose completions all score the same"]
    assert [(row["round"], row["share"]) for row in same] == [(1, 0), (2, 0), (3, 0)]
    lengths = answers["Tokens of chosen and rejected completions"]
    assert [(row["round"], row["answer"], row["tokens"]) for row in lengths][:2] == [
        (1, "chosen", 3.0), (1, "rejected", 3.0)
    ]  # fmt: skip
    # KL: -3 + 3 + 0.2 round + 0.01 index, of indices 0 to 4.
    distance = answers["Distance from the initial policy by round, in nats per sequence"]
    assert [round(row["kl"], 9) for row in distance] == [0.22, 0.42, 0.62]
    assert answers["Answers that were given most often"][0] == {
        "text": "again", "times": 24, "prompts": 2, "first": 1, "last": 3,
    }  # fmt: skip


def test_saved_questions_of_what_went_wrong(tmp_path: Path) -> None:
    """Judges a and b order three answers in opposite ways, and c alike with a, up to scale: correlations -1 and 1."""
    store = Store.open(tmp_path)
    run = store.create_run("odd", {"recipe": {}})
    scores = {"a": (1.0, 2.0, 3.0), "b": (0.0, -1.0, -2.0), "c": (10.0, 20.0, 30.0)}
    said = [judgment("p", index, judge, score) for judge, found in scores.items() for index, score in enumerate(found)]
    lengths = {"p": (5, 3), "q": (5, 9), "r": (4, 4), "s": (8, 1), "t": ()}
    pairs = [preference(prompt, counts) for prompt, counts in lengths.items()]
    failed = [judgment("p", 0, "a", None, "refused"), judgment("p", 1, "a", 1.0), judgment("q", 0, "a", 2.0)]
    alike = [judgment("q", 1, "a", 2.0), judgment("r", 0, "a", 2.0)]
    with run.writer() as writer:
        commit(store, writer, "odd", 1, "eval_judgments", to_table(said, JUDGMENTS))
        commit(store, writer, "odd", 1, "judgments", to_table([*failed, *alike], JUDGMENTS))
        commit(store, writer, "odd", 1, "preferences", to_table(pairs, PREFERENCES))
    found = {q.title: select(store, run, q.sql).to_pylist() for q in questions_for(columns_of(store, run))}
    assert [
        (row["judges"], round(row["correlation"], 9)) for row in found["How alike two judges score: their correlation"]
    ] == [("a and b", -1.0), ("a and c", 1.0), ("b and c", -1.0)]
    # p and s have the longer one chosen, q has not, and r is even: two of three.
    longer = found["How often the chosen completion is the longer one"]
    assert longer == [{"round": 1, "share": pytest.approx(2 / 3)}]
    assert found["Why prompts gave no preference"] == [{"round": 1, "prompts": 1, "drop_reason": "tie"}]
    tokens = found["Tokens of chosen and rejected completions"]
    assert [(row["answer"], row["tokens"]) for row in tokens] == [("chosen", 5.5), ("rejected", 4.25)]
    assert found["Verdicts that are none"] == [{"round": 1, "verdicts": 1, "status": "refused"}]
    # p and r have one score each, which says nothing; both scores of q are 2.
    assert found["Share of prompts whose completions all score the same"] == [{"round": 1, "share": 1.0, "judge": "a"}]


def judgment(prompt: str, index: int, judge: str, score: float | None, status: str = "ok") -> dict[str, object]:
    return {
        "prompt_id": prompt, "candidate": index, "score": score, "score_std": None, "components": [], "judge": judge,
        "rationale": None, "judge_version": "1", "status": status, "latency": 0.0, "raw": None,
    }  # fmt: skip


def preference(prompt: str, counts: tuple[int, ...]) -> dict[str, object]:
    """One of completions of these lengths, best first; none is a dropped prompt."""
    return {
        "prompt_id": prompt, "kind": "pair" if counts else "dropped", "candidates": list(range(len(counts))),
        "ranks": None, "scores": [1.0] * len(counts), "margin": None, "soft_label": None,
        "reference_logps": [-1.0] * len(counts), "token_counts": list(counts), "rule": "best_vs_worst",
        "drop_reason": None if counts else "tie", "policy": "0",
    }  # fmt: skip


def test_the_terminal_gives_the_same_rows(store: Store, visitor: TestClient) -> None:
    sql = "SELECT round, prompt_id, margin FROM preferences ORDER BY round, prompt_id"
    ran = CliRunner().invoke(commands, ["sql", "small", sql, "--root", store.root, "--format", "json"])
    rows = json.loads(ran.stdout)
    assert len(rows) == 9
    shown = asked(visitor, sql)
    for row in rows:
        assert f">{row['prompt_id']}</a>" in shown
        assert f">{row['margin']:.6g}</td>" in shown
    assert f"rondo sql small &#39;{sql}&#39; --root {store.root}" in shown


def test_rows_lead_to_their_prompts(visitor: TestClient) -> None:
    shown = asked(visitor, "select round, prompt_id, candidate from candidates where round = 2 and candidate = 1")
    assert 'href="/run/small/prompt/t0?round=2&amp;kind=training"' in shown
    assert 'href="/run/small/tokens/2/training/t0/1"' in shown
    held_out = asked(visitor, "select round, prompt_id from eval_candidates")
    assert 'href="/run/small/prompt/e0?round=0&amp;kind=held-out"' in held_out
    assert 'href="/run/small/round/3"' in asked(visitor, "select round, avg(score) from judgments group by 1")
    assert 'href="/run/small/prompt/e1"' in asked(visitor, "select prompt_id from prompts")
    # Names that lie are only names.
    assert (
        "href"
        not in asked(visitor, "select 'x' as round, 3.5 as prompt_id").partition("<tbody>")[2].partition("</t")[0]
    )


def test_null_is_no_number_and_two_columns_may_have_one_name(visitor: TestClient) -> None:
    shown = asked(visitor, "select null::double as a, 1.5 as a, 0 as b, [1, 2] as c, 'nan'::double as d")
    body = shown.partition("<tbody>")[2].partition("</tbody>")[0]
    assert body.count("<td") == 5
    assert ">null</span>" in body
    assert ">[1, 2]</td>" in body
    assert ">nan</td>" in body


def test_texts_stay_text_and_a_page_stays_small(visitor: TestClient) -> None:
    shown = asked(visitor, "select *, text as again, text as third from candidates, range(40)")
    assert len(shown.encode()) < 1_000_000
    assert "<script>alert" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "&lt;script&gt;" in asked(visitor, "select text from candidates where prompt_id = 't1'")
    wide = ", ".join(f"repeat('&', 1000) as c{number}" for number in range(300))
    shown = asked(visitor, "select " + wide + " from range(1000)")  # noqa: S608  our own
    assert len(shown.encode()) < 1_000_000
    hostile = HOSTILE.replace("'", "''")
    assert "<script>alert" not in asked(visitor, f"select '{hostile}' as \"{hostile}\"")
    chart = asked(visitor, f"select '{hostile}' as \"{hostile}\", 1 as y, '{hostile}' as z", **{"as": "bar"})
    assert "<script>alert" not in chart


def test_an_answer_is_paged_on_the_server(visitor: TestClient) -> None:
    first = asked(visitor, "select range as n from range(250) order by n")
    assert "Rows 1 to 100, of more" in first
    assert ">99</td>" in first
    assert ">100</td>" not in first
    assert 'rel="prev"' not in first
    following = html.unescape(first.partition('rel="next" href="')[2].partition('"')[0])
    second = visitor.get(following).text
    assert "Rows 101 to 200, of more" in second
    last = visitor.get(html.unescape(second.partition('rel="next" href="')[2].partition('"')[0])).text
    assert "Rows 201 to 250." in last
    assert 'rel="next"' not in last
    assert "No row fits after the first 300" in asked(visitor, "select range from range(250)", offset=300)


def test_a_chart_is_cut_and_says_so(visitor: TestClient) -> None:
    shown = asked(visitor, "select range as x, range * 2 as y from range(6000) order by x", **{"as": "scatter"})
    assert "Only the first 5,000 rows are drawn" in shown
    assert len(shown.encode()) < 1_000_000


def test_what_cannot_be_drawn_is_a_sentence(visitor: TestClient) -> None:
    assert "needs two columns" in refused(visitor, "select 1 as a", **{"as": "line"})
    assert "column b is no number (x)" in refused(visitor, "select 1 as a, 'x' as b", **{"as": "bar"})
    many = "select range as x, range as y, 'c' || range as colour from range(11)"
    assert "column colour has 11 values" in refused(visitor, many, **{"as": "line"})
    assert "nothing to draw" in refused(visitor, "select null::double as a, 1 as b", **{"as": "line"})
    assert "No row fits" in asked(visitor, "select 1 as a, 2 as b where false", **{"as": "line"})


def test_a_chart_is_of_the_columns_by_their_places() -> None:
    """0.5 as standard error gives 1.96 x 0.5 on each side."""
    chart = answer_chart(["when", "v", "error", "who"], [(1, 2.0, 0.5, "a"), (2, 4.0, None, None)], "line")
    assert chart.data.values == [
        {"x": 1, "y": 2.0, "colour": "a", "low": 2 - 0.98, "high": 2 + 0.98},
        {"x": 2, "y": 4.0, "colour": "null"},
    ]
    assert chart.description == "v by when, 2 points from 2 to 4, coloured by who: a, null."
    with pytest.raises(ConfigError, match="nothing to draw"):
        answer_chart(["a", "b"], [(float("nan"), 1.0), (1, float("nan"))], "scatter")


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "select * from read_csv('http://127.0.0.1:1/x.csv')",
        "select * from read_parquet('s3://bucket/x')",
        "select * from sqlite_scan('x.db', 'y')",
        "copy (select 1) to 'rondo-copied.csv'",
        "attach 'rondo-attached.db' as x",
        "pragma database_list",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "call pragma_version()",
        "create table x as select 1",
        "delete from rounds",
        "export database 'rondo-exported'",
        "select 1; select 2",
        "select 1; attach 'rondo-attached.db'",
    ],
)
def test_what_does_more_than_read_is_refused(
    visitor: TestClient, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "root:" not in refused(visitor, sql)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_function_of_an_extension_fetches_none(visitor: TestClient) -> None:
    """DuckDB would install extensions by itself when a statement names one of their functions."""
    assert "automatically install" not in refused(visitor, "select * from sqlite_scan('a', 'b')")


def test_names_of_python_are_no_tables(visitor: TestClient) -> None:
    """DuckDB otherwise looks for a table's name among the variables of whoever asks it."""
    for name in ("table", "files", "tables", "QUESTIONS"):
        assert "does not exist" in refused(visitor, f'from "{name}"')


def test_a_wrong_name_is_answered_with_those_that_there_are(visitor: TestClient) -> None:
    said = refused(visitor, "select scoer from judgments")
    assert 'Referenced column "scoer" not found' in said
    assert "judgments: round, prompt_id, candidate, score" in said
    assert refused(visitor, "select 1" + " " * 10_000 + "+ 1").count("more than 10,000") == 1
    assert visitor.get("/run/small/ask?as=pie").status_code == 400
    assert visitor.get("/run/none/ask?sql=select 1").status_code == 404


def test_a_question_that_takes_too_long_is_stopped(visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_page, "LIMITS", Limits(seconds=0.5, memory=10**9))
    began = time.monotonic()
    assert "took longer than 0.5 s and was stopped" in refused(visitor, ENDLESS)
    assert time.monotonic() - began < 10  # hundreds of hours without the limit
    assert ">1</td>" in asked(visitor, "select 1")


def test_a_question_that_needs_too_much_memory_is_stopped(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not fill the disk instead: DuckDB spills into the working directory."""
    monkeypatch.chdir(tmp_path)
    sql = "select s, count(*) from (select repeat('x', 100) || range as s from range(3000000)) group by s"
    with pytest.raises(QueryError, match=r"needs more than 0\.2 GB of memory"):
        select(store, store.run("small"), sql, rows=5, limits=Limits(seconds=60, memory=200_000_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        # 40,000 x 40,000 letters within one call: DuckDB looks at the time when it is done, here after about 10 s.
        ("select levenshtein(repeat('a', 40000), repeat('b', 40000))", "took longer than 1 s and was stopped"),
        # A list of 200,000,000 numbers of 8 bytes, and copies of it, which DuckDB does not count.
        ("select len(range(200000000))", "needs more than 0.5 GB of memory"),
    ],
)
def test_one_function_alone_is_held_to_the_limits(
    visitor: TestClient, monkeypatch: pytest.MonkeyPatch, sql: str, sentence: str
) -> None:
    assert ">1</td>" in asked(visitor, "select 1")  # the process runs
    monkeypatch.setattr(ask_page, "LIMITS", Limits(seconds=1, memory=500_000_000))
    used = psutil.Process().memory_info().rss
    began = time.monotonic()
    assert sentence in refused(visitor, sql)
    assert time.monotonic() - began < 5
    assert psutil.Process().memory_info().rss - used < 200_000_000
    assert ">1</td>" in asked(visitor, "select 1")  # another has begun


def test_an_answer_that_is_too_large_is_refused_and_long_texts_are_cut(visitor: TestClient) -> None:
    assert "MB, more than 64: ask for fewer rows" in refused(visitor, "select range(20000000)")
    assert f">{'x' * 400}…</td>" in asked(visitor, "select repeat('x', 100000000)")


def test_of_many_questions_at_once_some_are_refused_at_once(
    visitor: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once: one is answered, two wait, and five are told so; they hold no thread of the other pages."""
    monkeypatch.setattr(ask_page, "LIMITS", Limits(seconds=2, memory=10**9))
    began = time.monotonic()

    def ask(_: int) -> tuple[int, float, str]:
        answer = visitor.get("/run/small/ask", params={"sql": ENDLESS})
        return answer.status_code, time.monotonic() - began, answer.text

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert sorted(status for status, _, _ in answers) == [400] * 3 + [503] * 5
    # The three take 2 s each, one after the other; none of those that are refused waits for two of them.
    assert all(seconds < 4 for status, seconds, _ in answers if status == 503)
    assert all("3 questions are being answered or wait already" in text for status, _, text in answers if status == 503)
    assert ">1</td>" in asked(visitor, "select 1")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("DATE '10000-01-01'", "10000-01-01"),
        ("'infinity'::DATE", "infinity"),
        ("'-infinity'::DATE", "-infinity"),
        ("'infinity'::TIMESTAMP", "infinity"),
        ("TIMESTAMP '10000-01-01 00:00:00'", "10000-01-01 00:00:00.000000"),
        ("[DATE '10000-01-01', NULL, DATE '2020-01-02']", "[10000-01-01, null, 2020-01-02]"),
        ("{'a': 'infinity'::TIMESTAMP}", '{"a": "infinity"}'),
        ("map {'a': 'infinity'::DATE}", '[{"key": "a", "value": "infinity"}]'),
    ],
)
def test_dates_that_python_does_not_have_are_shown(visitor: TestClient, value: str, text: str) -> None:
    assert f">{text}</td>" in html.unescape(asked(visitor, f"select {value} as x, 1 as y"))
    assert visitor.get("/run/small/ask", params={"sql": f"select {value} as x, 1 as y", "as": "bar"}).status_code == 200


@pytest.mark.parametrize("kind", ["['served']", "{'a': 1}", "map {'a': 1}", "1", "NULL", "'other'"])
def test_a_column_kind_may_be_anything(visitor: TestClient, kind: str) -> None:
    shown = asked(visitor, f"select 1 as round, 't0' as prompt_id, {kind} as kind")
    assert 'href="/run/small/prompt/t0?round=1&amp;kind=training"' in shown


def test_a_run_without_rounds_has_the_questions_that_it_can_answer(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.create_run("empty", {"recipe": {}})
    assert list(questions_for(columns_of(store, store.run("empty")))) == []
    visitor = TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")
    shown = visitor.get("/run/empty/ask").text
    assert "Saved questions" not in shown
    assert "<code>rounds</code>" in shown


def test_a_file_that_was_opened_for_an_earlier_question_is_damaged_since(tmp_path: Path) -> None:
    """The process keeps files open between questions: the second one is answered from them, the third must not be."""
    store = Store.open(tmp_path)
    run = finished_run(store, rounds=1)
    asking = TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")
    question = {"sql": "SELECT count(*) AS n, sum(score) AS s FROM judgments"}
    first, second = (asking.get("/run/small/ask", params=question).text for _ in range(2))
    assert ">12<" in first
    assert first == second
    path = run.files(1, "judgments")[0].path
    intact = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(intact[: len(intact) // 2])
    third = asking.get("/run/small/ask", params=question)
    assert third.status_code == 500
    assert f"{path} is damaged" in html.unescape(third.text)
    (tmp_path / path).write_bytes(intact)
    assert ">12<" in asking.get("/run/small/ask", params=question).text
