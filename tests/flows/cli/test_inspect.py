"""The commands that look into a run over its rounds, as a user meets them; the numbers are those of the small run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow.compute as pc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.options import Format
from flows.host.text import visible
from flows.registry.resume import header
from flows.report.report import write_report
from pipeline.errors import ConfigError
from pipeline.records import PROMPTS, to_table
from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.log.writer import Writer
from storage.queries.round_query import table
from storage.tables.checkpoints import stage_directory
from storage.tables.shards import write_table
from support.finished_run import finished_run, prompts_table, say, score_of, small_recipe

Call = Callable[..., str]
HOSTILE = "\x1b[31mred\x1b[0m [bold]bold[/bold] \u202eevil"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    finished_run(Store.open(path), text=lambda *where: HOSTILE if where == (3, "e4", 0) else say(*where))
    return path


@pytest.fixture
def call(root: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """What a command prints."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RONDO_ROOT", str(root))

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return call


def read(call: Call, *arguments: str) -> Any:
    return json.loads(call(*arguments, "--json"))


def test_sql(call: Call) -> None:
    statement = "select round, count(*) n, max(score) best from judgments group by 1 order by 1"
    # Prompts t0 to t2 with four candidates; the best is candidate 3 of t2: 0.1 * round * 3 + 0.03.
    assert read(call, "sql", "small", statement) == [
        {"round": number, "n": 12, "best": pytest.approx(0.3 * number + 0.03)} for number in (1, 2, 3)
    ]
    assert "0.93" in call("sql", "small", statement)
    assert read(call, "sql", "small", "select 'nan'::double as x") == [{"x": None}], "JSON has no such number"
    many = call("sql", "small", "select * from range(300)")
    assert "100 more rows: add LIMIT" in many


@pytest.mark.parametrize(
    "statement",
    [
        "drop table candidates",
        "select * from '/etc/passwd'",
        "select 1; select 2",
        "copy candidates to 'x.csv'",
        "nope",
    ],
)
def test_sql_only_reads(call: Call, statement: str) -> None:
    with pytest.raises(QueryError):
        call("sql", "small", statement)


def test_sql_of_a_run_that_has_no_round_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    store.create_run("begun", header(small_recipe()))
    monkeypatch.setenv("RONDO_ROOT", str(tmp_path))
    done = CliRunner().invoke(app, ["sql", "begun", "select round, finished from rounds"], catch_exceptions=False)
    assert done.output == "no row fits\n"


def test_history(call: Call) -> None:
    told = read(call, "history", "small", "e4")
    assert told["text"] == "Tell me of e4."
    assert [row["score"] for row in told["answers"]] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    text = call("history", "small", "t0")
    assert "best" in text
    assert "answer 3 to t0 in round 2" in text


def test_scores(call: Call) -> None:
    rows = read(call, "scores", "small", "--training")
    assert [row["judged"] for row in rows] == [12, 12, 12]
    assert [sum(row["histogram"]) for row in rows] == [12, 12, 12]
    assert "█" in call("scores", "small")


def test_margins_and_repeats(call: Call) -> None:
    rows = read(call, "margins", "small", "--limit", "2")
    assert [row["which"] for row in rows] == ["largest"] * 2 + ["smallest"] * 2
    assert all(row["margin"] == pytest.approx(0.03) for row in rows)
    assert read(call, "repeats", "small") == []
    assert "no two rounds gave the same completion" in call("repeats", "small", "--same-tokens")


def test_diff(call: Call) -> None:
    rows = read(call, "diff", "small@1", "small@3")
    # A held-out prompt eN gains 0.1 * 2 * (1 + N), and e2 loses as much.
    assert {row["prompt_id"]: round(row["change"], 9) for row in rows} == {
        "e0": 0.2, "e1": 0.4, "e2": -0.6, "e3": 0.8, "e4": 1.0,
    }  # fmt: skip
    text = call("diff", "small@1", "small@3", "--training", "--limit", "1")
    assert "3 prompts in both, 0 new, 0 gone; scores: 3 rose, 0 fell" in text
    assert "preferences: 3 other answers" in text


def test_people_read_the_question_and_machines_what_the_policy_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat template's first words are those of every prompt; what tells prompts apart stands at their end."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RONDO_ROOT", str(tmp_path))
    turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "And why is the sky blue?")]
    messages = [{"role": role, "content": content, "fields": None} for role, content in turns]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    rows = [{**row, "messages": messages, "text": text} for row in prompts_table().to_pylist()]
    finished_run(Store.open(tmp_path), prompts=to_table(rows, PROMPTS), rounds=2)

    for command in (
        ("show", "small"), ("show", "small", "--table", "eval_judgments"), ("show", "small", "--table", "preferences"),
        ("diff", "small@1", "small@2"), ("margins", "small"), ("history", "small", "e4"),
    ):  # fmt: skip
        short, full, exact = (
            CliRunner().invoke(app, [*command, *more], catch_exceptions=False).output
            for more in ([], ["--full"], ["--json"])
        )
        assert "… And why is the sky blue?" in short
        assert "im_start" not in short + full
        assert "Be brief." not in short
        assert all(f"[{role}]" in full and content in full for role, content in turns)
        assert "<|im_start|>system\\nBe brief." in exact


def test_a_round_at_work_is_shown_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    run = finished_run(store, rounds=1)
    of_round = store.run("small")
    with run.writer() as writer:
        for shard, prompt in enumerate(("t0", "t1")):
            found = table(store, of_round, 1, "candidates").filter(pc.field("prompt_id") == prompt)
            writer.commit(Key(2, "candidates", shard), [write_table(store, "small", 2, "candidates", found, shard)])
        held_out = table(store, of_round, 1, "eval_judgments")
        writer.commit(Key(2, "eval_judgments"), [write_table(store, "small", 2, "eval_judgments", held_out)])
        held_out = table(store, of_round, 1, "eval_candidates")
        writer.commit(Key(2, "eval_candidates"), [write_table(store, "small", 2, "eval_candidates", held_out)])

    def show(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["show", *arguments, "--root", str(tmp_path)], catch_exceptions=False)

    shown = show("small@2", "--limit", "100")
    assert "completions of small@2, which is not finished: what is committed so far" in " ".join(shown.output.split())
    rows = show("small@2", "--limit", "100", "--json")
    assert {row["prompt_id"] for row in json.loads(rows.stdout)} == {"t0", "t1"}
    assert "not finished" in rows.stderr
    # The scores beside held-out completions are those of the training judge, as in a finished round.
    scores = [row["score"] for row in json.loads(show("small@2", "--table", "eval_completions", "--json").stdout)]
    assert scores == pytest.approx([score_of(1, f"e{number}", 0) for number in range(5)])
    assert "small@1" in show("small").output, "a run alone means its newest finished round"
    with pytest.raises(NotCommittedError, match="round 2 of run 'small' has no preferences: it has candidates"):
        show("small@2", "--table", "preferences")
    with pytest.raises(ConfigError, match="round 3 of run 'small' is not finished: it has rounds 0 to 1"):
        show("small@3")
    with pytest.raises(ConfigError, match="round 2 of run 'small' is not finished"):
        CliRunner().invoke(app, ["diff", "small@1", "small@2", "--root", str(tmp_path)], catch_exceptions=False)


def test_lengths_that_the_check_of_packing_did_not_try_are_told(tmp_path: Path) -> None:
    untried = {"untried_lengths": ["sliding_window 32768", "max_position_embeddings 131072"]}

    def also(writer: Writer, number: int) -> None:
        if number == 0:
            with stage_directory(store, "told", 0, "checkpoint") as staged:
                (staged.path / "model.safetensors").write_bytes(b"weights")
            writer.commit(Key(0, "checkpoint"), staged.files, {"policy": "policy0", **untried})

    store = Store.open(tmp_path)
    finished_run(store, "told", rounds=0, also=also)
    finished_run(store, "small", rounds=0)
    said = "beyond sliding_window 32768, max_position_embeddings 131072 tokens"
    for command in (("show", "--table", "eval_completions"), ("rounds",)):
        for run, told in (("told", True), ("small", False)):
            output = (
                CliRunner()
                .invoke(app, [command[0], run, *command[1:], "--root", str(tmp_path)], catch_exceptions=False)
                .output
            )
            assert (said in output) is told
    assert said in Path(write_report(store, store.run("told"))).read_text()


@pytest.mark.parametrize(
    "arguments",
    [("history", "small", "e4"), ("diff", "small@2", "small@3"), ("show", "small@3", "--table", "eval_candidates"),
     ("sql", "small", "select text from eval_candidates where round = 3")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_what_a_model_wrote_is_shown_and_not_obeyed(call: Call, arguments: tuple[str, ...]) -> None:
    text = "".join(call(*arguments).split())
    assert "\x1b" not in text
    assert "\u202e" not in text
    for shown in ("\\x1b[31mred", "[bold]bold[/bold]", "\\u202eevil"):
        assert shown in text


def test_visible_text() -> None:
    assert visible("plain, ümlaut, 漢字 👍\nnext line") == "plain, ümlaut, 漢字 👍\nnext line"
    assert visible("\x07\r\t\x9b\u2028\ud800") == "\\x07\\r\\t\\x9b\\u2028\\ud800"


def test_a_run_alone_means_its_newest_round(call: Call) -> None:
    newest = call("show", "small@3", "--table", "candidates")
    assert "completions of small@3" in call("show", "small")
    for source in ("small", "small@latest"):
        assert call("show", source, "--table", "completions").splitlines()[3:] == newest.splitlines()[3:]
    assert read(call, "diff", "small@1", "small") == read(call, "diff", "small@1", "small@3")
    with pytest.raises(ConfigError, match=f"'small@{'9' * 74}…' is not RUN@ROUND"):
        call("show", f"small@{'9' * 5000}")  # Python reads no such number
    with pytest.raises(ConfigError, match="'small@last' is not RUN@ROUND"):
        call("show", "small@last")
    with pytest.raises(ConfigError, match="round 4 of run 'small' is not finished: it has rounds 0 to 3"):
        call("show", "small@4")


def test_people_read_of_completions_and_machines_of_candidates(call: Call) -> None:
    header = call("show", "small", "--limit", "1").splitlines()[2]
    assert "completion" in header
    assert "candidate" not in header
    row = read(call, "show", "small", "--table", "completions", "--limit", "1")[0]
    assert "candidate" in row
    assert "completion" not in row
    assert call("show", "small", "--limit", "1", "--format", "csv").startswith("prompt_id,candidate,")


def test_path_prints_the_committed_files_and_no_others(call: Call, root: Path) -> None:
    store = Store.open(root)
    stray = root / "runs" / "small" / "rounds" / "0003" / f"candidates-all-{'0' * 32}.parquet"
    committed = [str(root / file.path) for file in store.run("small").files(3, "candidates")]
    stray.write_bytes(Path(committed[0]).read_bytes())
    try:
        assert call("path", "small@3", "completions").splitlines() == committed
        assert call("path", "small", "candidates").splitlines() == committed
    finally:
        stray.unlink()
    prompts = [str(root / file.path) for file in store.run("small").files(0, "prompts")]
    assert call("path", "small@2", "prompts").splitlines() == prompts
    with pytest.raises(NotCommittedError, match="round 0 of run 'small' has no completions: it has"):
        call("path", "small@0", "completions")


def test_the_paths_are_what_other_tools_read(call: Call) -> None:
    files = call("path", "small", "completions").split()
    assert duckdb.read_parquet(files).aggregate("count(*)").fetchall() == [(12,)]
    assert polars.read_parquet(files).height == 12


def test_every_reading_command_has_every_format(call: Call) -> None:
    arguments = [
        ("runs",), ("rounds", "small"), ("show", "small"), ("history", "small", "t0"), ("scores", "small"),
        ("margins", "small"), ("diff", "small@1", "small"), ("verify", "small"), ("lineage",), ("recipes",),
        ("sql", "small", "select * from rounds"), ("sweep", "--dry-run"),
    ]  # fmt: skip
    for command in arguments:
        for format in Format:
            text = call(*command, "--format", format.value)
            if format is Format.json:
                json.loads(text)
            if format is Format.jsonl:
                assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
