"""The store knows runs, rounds, stages, shards, entries and files, and nothing of what the rounds are for."""

import re
from pathlib import Path

import pytest

import flows  # noqa: F401  completes the sentences
from storage.errors import REMEDIES, STAGE_TITLES, remedy

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "storage").rglob("*.py"))

WORDS = re.compile(
    r"\b(rondo [a-z]+|--take-over|dpo|recipes?|staleness|candidates?|preferences?|judgments?|judges?|policy|policies"
    r"|prompts?|samplers?|sampled|sampling|adapters?|rewards?|optimizers?|ema|update_state|warm.starts?|checkpoints?"
    r"|chosen_\w+|rejected)\b|\beval_",
    re.IGNORECASE,
)
ALLOWED = {
    # The room of directories keeps the name that the field has for what mostly lies in them.
    ("storage/tables/checkpoints.py", "checkpoints"),
    ("storage/retention/sweep.py", "checkpoints"),
    ("storage/verify/verify.py", "checkpoints"),
    # What people call the header of their run when it is lost.
    ("storage/verify/log.py", "recipe"),
}


def words_of(path: Path) -> set[tuple[str, str]]:
    name = path.relative_to(ROOT).as_posix()
    return {(name, match[0].lower()) for match in WORDS.finditer(path.read_text())}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_storage_names_nothing_of_dpo_and_no_command(path: Path) -> None:
    assert words_of(path) - ALLOWED == set()


def test_the_check_itself_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = "see 'rondo verify x'; Staleness of eval_judgments; the policy's EMA"
    assert [match[0] for match in WORDS.finditer(source)] == ["rondo verify", "Staleness", "eval_", "policy", "EMA"]


def test_flows_complete_every_sentence_of_the_store() -> None:
    assert set(REMEDIES) == {"go on", "try again", "clear", "take over", "verify"}
    for action in REMEDIES.keys() - {"try again"}:  # of a full disk, under whatever command
        assert re.search(r"'rondo [a-z]+ demo[^']*'", remedy(action, "demo")), action
    assert STAGE_TITLES == {"checkpoint": "weights"}
