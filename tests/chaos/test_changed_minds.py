"""People who choose otherwise between two interruptions, and then as at first: the round is that of their last word."""

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.analysis.labelling import Labelling
from flows.cli.main import WAITING
from storage.log.store import Store
from support import chaos
from support.compare import assert_same
from support.forkserver import Done
from support.small_run import SMALL, Rondo

JUDGED: dict[str, Any] = {"judge": {"kind": "people"}, "evaluation": {"prompts": 8, "judges": [{"kind": "vader"}]}}
OVERRIDDEN: dict[str, Any] = {"people": {"wait_for": 6}}
OPTIMIZED: dict[str, Any] = {"update": {**SMALL["update"], "optimizer_state": "carried", "reference": "ema"}}
LATE = "entry commit 1/eval_logps"  # all that depends on the choices has been committed by then, but the round


@pytest.mark.nightly
@pytest.mark.parametrize("people", [JUDGED, OVERRIDDEN], ids=["judge", "override"])
def test_the_last_word_counts(rondo: Rondo, disk: Path, tmp_path: Path, people: dict[str, Any]) -> None:
    path, covered = tmp_path / "recipe.yaml", tmp_path / "covered"
    path.write_text(yaml.safe_dump({**SMALL, **OPTIMIZED, **people}))

    def go_on(root: Path, **options: Any) -> Done:
        return rondo("run", str(path), "--root", str(root), "--resume", **options)

    changing, steady = disk / "changing", disk / "steady"
    for root in (changing, steady):
        assert go_on(root, ok=False).returncode == WAITING
    labelling = Labelling.open("small@1", "ann", 0, str(changing))
    for place, better in enumerate((0, 1)):
        _choose(labelling, better)
        settings = chaos.settings(covered.with_suffix(f".{place}"), "after", only=[LATE])
        assert go_on(changing, environment=settings, ok=False).returncode == -signal.SIGKILL
    _choose(labelling, 0)
    go_on(changing)
    _choose(Labelling.open("small@1", "ann", 0, str(steady)), 0)
    go_on(steady)
    # What was said in between has cost something: its policy has answered the held-out prompts as well.
    assert_same(steady, "small", changing, "small", range(2), costs=("seconds", "sampled_tokens"))
    run, expected = (Store.open(root).run("small") for root in (changing, steady))
    for stage in ("optimizer", "ema"):
        assert [file.sha256 for file in run.files(1, stage)] == [file.sha256 for file in expected.files(1, stage)]
    rondo("verify", "small", "--root", str(changing))


def _choose(labelling: Labelling, better: int) -> None:
    """For each question, the one of the two answers that is shorter, or longer."""
    for question in labelling.questions:
        lengths = [(len(answer.text), answer.text) for answer in labelling.shown(question)]
        labelling.choose(question, "a" if (lengths[0] < lengths[1]) == (better == 0) else "b")
