"""Preferences as a dataset: what other trainers read, from a run in a real store."""

from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset

from flows.publish import Style
from flows.publish.export import export_preferences
from pipeline.errors import ConfigError, DataError
from pipeline.records import PROMPTS, to_table
from storage.errors import BackendError, DamagedFileError, NotCommittedError
from storage.log.store import Store
from support.finished_run import finished_run, prompts_table, small_recipe
from support.tiny import tiny_llama, tiny_tokenizer

PAIR_COLUMNS = [
    "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "finish_reason_chosen", "finish_reason_rejected",
    "prompt_id",
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "pairs"


def read(directory: Path, tmp_path: Path) -> Dataset:
    return load_dataset(str(directory), split="train", cache_dir=str(tmp_path / "cache"))


def test_pairs_are_read_back_as_they_were_preferred(store: Store, target: Path, tmp_path: Path) -> None:
    run = finished_run(store, rounds=2)
    assert export_preferences(store, run, 2, target) == 3
    rows = read(target, tmp_path)
    assert rows.column_names == PAIR_COLUMNS
    # Of four candidates with scores rising by index, the last is best and the first is worst.
    assert rows[1] == {
        "prompt": [{"role": "user", "content": "Tell me of t1."}],
        "chosen": [{"role": "assistant", "content": " answer 3 to t1 in round 2"}],
        "rejected": [{"role": "assistant", "content": " answer 0 to t1 in round 2"}],
        "score_chosen": pytest.approx(0.1 * 2 * 2 + 0.03),
        "score_rejected": pytest.approx(0.1 * 2 * 2),
        "finish_reason_chosen": "stop",
        "finish_reason_rejected": "stop",
        "prompt_id": "t1",
    }


def test_a_conversation_stays_one(store: Store, target: Path, tmp_path: Path) -> None:
    export_preferences(store, finished_run(store, rounds=1), 1, target)
    by_id = {row["prompt_id"]: row["prompt"] for row in read(target, tmp_path)}
    assert by_id["t0"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me of t0."},
    ]


def test_another_trainer_takes_the_rows_for_conversational_preferences(
    store: Store, target: Path, tmp_path: Path
) -> None:
    from trl import is_conversational

    export_preferences(store, finished_run(store, rounds=1), 1, target)
    rows = read(target, tmp_path)
    assert all(is_conversational(row) for row in rows)
    assert {"prompt", "chosen", "rejected"} <= set(rows.column_names)


def test_every_pair_of_a_prompt_is_a_row(store: Store, target: Path, tmp_path: Path) -> None:
    run = finished_run(store, rounds=1, recipe=small_recipe(preferences={"rule": "all_pairs"}))
    assert export_preferences(store, run, 1, target) == 3 * 6  # three prompts, four candidates each
    rows = read(target, tmp_path)
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)


def test_rankings_keep_their_order(store: Store, target: Path, tmp_path: Path) -> None:
    recipe = small_recipe(preferences={"rule": "full_ranking"}, update={"objective": "plackett_luce"})
    assert export_preferences(store, finished_run(store, rounds=1, recipe=recipe), 1, target) == 3
    rows = read(target, tmp_path)
    assert rows.column_names == ["prompt", "completions", "ranks", "scores", "finish_reasons", "prompt_id"]
    assert rows[2]["ranks"] == [0, 1, 2, 3]
    assert [answer[0]["content"] for answer in rows[2]["completions"]] == [
        f" answer {index} to t2 in round 1" for index in (3, 2, 1, 0)
    ]
    assert rows[2]["scores"] == pytest.approx([0.33, 0.32, 0.31, 0.3])


def test_ties_of_a_ranking_are_exported(store: Store, target: Path, tmp_path: Path) -> None:
    # Of the four only the best one's place is known.
    preferences = {"rule": "top_m", "top": 1}
    recipe = small_recipe(preferences=preferences, update={"objective": "plackett_luce"})
    export_preferences(store, finished_run(store, rounds=1, recipe=recipe), 1, target)
    assert [row["ranks"] for row in read(target, tmp_path)] == [[0, 1, 1, 1]] * 3


def test_dropped_prompts_are_left_out_and_counted_on_the_card(store: Store, target: Path) -> None:
    # The answers to t1 have no text, so that none of its candidates is left.
    run = finished_run(store, rounds=1, text=lambda round, prompt_id, index: " " if prompt_id == "t1" else f"{index}")
    assert export_preferences(store, run, 1, target) == 2
    assert "| prompts dropped | 1 empty |" in (target / "README.md").read_text()


def test_the_card_says_what_it_is(store: Store, target: Path) -> None:
    export_preferences(store, finished_run(store, rounds=2), 2, target)
    _, front, text = (target / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    for line in (
        "| rows | 3 |",
        "| run | small, from recipe small |",
        "| round | 2 |",
        "| policy that sampled | policy1 |",
        "| judge | vader, version 1 |",
        "| rule | best&#95;vs&#95;worst |",
    ):
        assert line in text
    assert set(PAIR_COLUMNS) == {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}


def test_an_empty_directory_is_taken(store: Store, target: Path) -> None:
    target.mkdir(parents=True)
    assert export_preferences(store, finished_run(store, rounds=1), 1, target) == 3
    assert sorted(path.name for path in target.parent.iterdir()) == ["pairs"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_there_is_not_touched(store: Store, target: Path, kind: str) -> None:
    run = finished_run(store, rounds=1)
    there = target if kind == "file" else target / "mine.txt"
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    with pytest.raises(ConfigError, match=r"pairs' is already there, and not an empty directory: give a new one"):
        export_preferences(store, run, 1, target)
    assert there.read_text() == "mine"
    assert len(list(target.parent.iterdir())) == 1


def test_a_name_of_a_file_is_refused_for_it_would_be_a_directory(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pairs.jsonl' would be a directory.*: leave '.jsonl' out"):
        export_preferences(store, finished_run(store, rounds=1), 1, tmp_path / "pairs.jsonl")


def test_round_0_has_none(store: Store, target: Path) -> None:
    with pytest.raises(NotCommittedError, match="round 0 of run 'small' has no preferences"):
        export_preferences(store, finished_run(store, rounds=1), 0, target)
    assert not target.exists()


def test_a_round_whose_prompts_were_all_dropped_is_an_error(store: Store, target: Path) -> None:
    run = finished_run(store, rounds=1, text=lambda *_: " ", changes={"margin": None})
    with pytest.raises(DataError, match="round 1 of run 'small' has no preference, for all its prompts were dropped"):
        export_preferences(store, run, 1, target)
    assert not target.exists()


def test_a_damaged_table_leaves_nothing_behind(store: Store, target: Path) -> None:
    run = finished_run(store, rounds=1)
    (file,) = run.files(1, "candidates")
    path = store.objects.local_path(file.path)
    assert path is not None
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFileError):
        export_preferences(store, run, 1, target)
    assert not target.parent.exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    run = finished_run(store, rounds=1)
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match="file/pairs"):
        export_preferences(store, run, 1, tmp_path / "file" / "pairs")


def test_a_store_in_memory_exports_alike(target: Path, tmp_path: Path) -> None:
    store = Store.open("memory://")
    assert export_preferences(store, finished_run(store, rounds=1), 1, target) == 3
    assert len(read(target, tmp_path)) == 3


def test_answers_cut_at_the_limit_are_left_out_and_counted(store: Store, target: Path, tmp_path: Path) -> None:
    # Of four candidates the last is best and the first is worst.
    run = finished_run(store, rounds=1, cut={("t1", 3), ("t2", 1)})
    told: list[str] = []
    assert export_preferences(store, run, 1, target, say=told.append) == 2
    assert told == ["1 more preferences rest on answers cut at the limit and are left out: --truncated keeps them"]
    assert [row["prompt_id"] for row in read(target, tmp_path)] == ["t0", "t2"]
    assert "| left out, for an answer was cut at the limit | 1 |" in (target / "README.md").read_text()
    kept = tmp_path / "kept"
    assert export_preferences(store, run, 1, kept, truncated=True, say=told.append) == 3
    assert len(told) == 1
    row = read(kept, tmp_path)[1]
    assert (row["finish_reason_chosen"], row["finish_reason_rejected"]) == ("length", "stop")


def test_a_ranking_goes_on_without_answers_cut_at_the_limit(store: Store, target: Path, tmp_path: Path) -> None:
    recipe = small_recipe(preferences={"rule": "full_ranking"}, update={"objective": "plackett_luce"})
    cut = {("t0", 2), *(("t1", index) for index in range(3))}
    run = finished_run(store, rounds=1, recipe=recipe, cut=cut)
    assert export_preferences(store, run, 1, target) == 2
    rows = read(target, tmp_path)
    assert [answer[0]["content"].split()[1] for answer in rows[0]["completions"]] == ["3", "1", "0"]
    assert rows[0]["ranks"] == [0, 1, 2]
    assert rows[0]["finish_reasons"] == ["stop"] * 3
    assert [row["prompt_id"] for row in rows] == ["t0", "t2"]


def test_nothing_but_answers_cut_at_the_limit(store: Store, target: Path) -> None:
    run = finished_run(store, rounds=1, cut={(prompt, 0) for prompt in ("t0", "t1", "t2")})
    with pytest.raises(DataError, match=r"all 3 preferences of round 1 .* cut at the limit: raise .* --truncated"):
        export_preferences(store, run, 1, target)
    assert not target.exists()


def test_texts_train_a_model_without_a_template(store: Store, target: Path, tmp_path: Path) -> None:
    """Another trainer takes the style of text as it is, for a tokenizer that has no chat template."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    export_preferences(store, finished_run(store, rounds=1), 1, target, style=Style.text)
    rows = read(target, tmp_path)
    assert (rows[1]["prompt"], rows[1]["chosen"]) == ("Tell me of t1.", " answer 3 to t1 in round 1")
    policy = tiny_llama(tmp_path / "policy")
    config = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy), args=config, train_dataset=rows, processing_class=tiny_tokenizer()
    )
    assert trainer.train().global_step == 1


def test_messages_with_other_fields_are_exported_as_texts_only(store: Store, target: Path, tmp_path: Path) -> None:
    prompts = prompts_table().to_pylist()
    prompts[1]["messages"] = [{"role": "user", "content": "hi", "fields": '{"name": "Ann"}'}]
    run = finished_run(store, rounds=1, prompts=to_table(prompts, PROMPTS))
    with pytest.raises(DataError, match=r"prompt t1 has messages with the field 'name', .* --style text"):
        export_preferences(store, run, 1, target)
    assert export_preferences(store, run, 1, target, style=Style.text) == 3
