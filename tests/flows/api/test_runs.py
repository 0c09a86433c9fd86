"""Runs as programs see them, over the small run."""

from pathlib import Path

import pytest

from flows import api
from pipeline.errors import ConfigError
from storage.errors import DamagedFileError, NotCommittedError, RunNotFoundError
from storage.log.store import Store
from storage.tables.shards import read_table
from support.finished_run import finished_run, small_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("root")
    finished_run(Store.open(path))
    return path


@pytest.fixture
def run(root: Path) -> api.Run:
    return api.open("small", root)


def test_a_run_has_its_rounds_and_its_recipe(run: api.Run, root: Path) -> None:
    assert (run.name, run.root, len(run)) == ("small", str(root), 4)
    assert [round.number for round in run] == [0, 1, 2, 3]
    assert run[-1].number == 3
    assert [summary.round for summary in run.rounds] == [0, 1, 2, 3]
    assert run[2].summary == run.rounds[2]
    assert run.recipe == small_recipe()
    assert isinstance(run.recipe, api.Recipe)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("completions", "candidates"), ("judgments", "judgments"), ("preferences", "preferences"),
     ("metrics", "metrics"), ("eval_completions", "eval_candidates"), ("eval_judgments", "eval_judgments")],
)  # fmt: skip
def test_a_table_is_what_was_committed(run: api.Run, root: Path, name: str, stage: str) -> None:
    store = Store.open(root)
    committed = read_table(store, store.run("small").files(3, stage))
    table: api.Table = getattr(run[3], name)
    assert table.arrow().equals(committed)
    assert len(table.to_pandas()) == committed.num_rows
    assert table.to_polars().columns == committed.column_names
    assert table.files == [str(root / file.path) for file in store.run("small").files(3, stage)]
    assert run[3].table(stage).files == table.files


def test_prompts_are_those_of_the_run(run: api.Run) -> None:
    assert run[3].prompts.arrow().equals(run[0].prompts.arrow())
    assert set(run[3].completions.to_polars()["prompt_id"]) < set(run[3].prompts.to_polars()["prompt_id"])


def test_what_is_not_there_is_one_sentence(run: api.Run, root: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="round 4 of run 'small' is not finished: it has rounds 0 to 3"):
        run[4]
    with pytest.raises(NotCommittedError, match="round 0 of run 'small' has no preferences: it has"):
        run[0].preferences.arrow()
    with pytest.raises(RunNotFoundError, match="did you mean 'small'"):
        api.open("smal", root)
    with pytest.raises(ConfigError, match="there is no root"):
        api.open("small", tmp_path / "elsewhere")


def test_the_root_is_that_of_the_command_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_ROOT", str(root))
    assert api.open("small").root == str(root)
    monkeypatch.delenv("RONDO_ROOT")
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError, match="there is no root 'runs/runs'"):
        api.open("small", "runs/runs")


def test_damage_is_found(tmp_path: Path) -> None:
    finished_run(Store.open(tmp_path))
    table = api.open("small", tmp_path)[1].completions
    Path(table.files[0]).write_bytes(b"nothing that was committed")
    with pytest.raises(DamagedFileError):
        table.to_pandas()


def test_rounds_that_finish_later_are_seen(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    finished_run(store, recipe=small_recipe(rounds=1))
    run = api.open("small", tmp_path)
    seen = len(run)
    with store.run("small").writer() as writer:
        writer.finish_round(seen, {**store.run("small").rounds()[-1].meta, "round": seen})
    assert len(run) == len(run.rounds) == seen + 1


def test_a_wrong_recipe_is_answered_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"update\.beta: 0 is not allowed"):
        api.run({**small_recipe().model_dump(mode="json"), "update": {"beta": 0}}, root=tmp_path / "new")
    with pytest.raises(ConfigError, match=r"there is no recipe 'sentimental'.*sentiment"):
        api.run("sentimental", root=tmp_path / "new")
    assert not (tmp_path / "new").exists()
