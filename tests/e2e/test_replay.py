"""Whole runs with replay, and with a language model that is asked again whether it still says the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.log.store import Store
from storage.queries.round_query import table
from support.chat_server import Response, answers_shown, chat_server, says
from support.compare import assert_same
from support.forkserver import Done
from support.recipes import TINY

Rondo = Callable[..., Done]
SHARE, PROBED = 0.4, 5


def test_a_run_replays_its_past_and_asks_its_judge_again(rondo: Rondo, tmp_path: Path) -> None:
    """Killed between the choice of what is replayed and the update, a run ends as one that nothing interrupted."""

    def by_length(body: dict[str, Any], _: int) -> Response:
        (text,) = answers_shown(body)
        score = 1 + len(text) % 5
        return says(json.dumps({"score": score}), {str(score): 1.0})

    with chat_server(by_length) as served:
        llm = {"kind": "llm", "model": "m", "base_url": served.url, "mode": "rubric"}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({
            **TINY,
            "policy": {**TINY["policy"], "steps": 50},
            "preferences": {"rule": "all_pairs", "max_pairs": 2, "replay": {"share": SHARE, "max_age": 1}},
            "evaluation": {**TINY["evaluation"], "judges": [llm, {"kind": "grammar"}], "judge_probe": PROBED},
        }))  # fmt: skip
        rondo("run", str(path), "--name", "whole", "--root", str(tmp_path))
        killed = rondo("run", str(path), "--name", "killed", "--root", str(tmp_path), kill="replayed:2:after")
        assert killed.returncode == -9, killed.stderr
        rondo("resume", "killed", "--root", str(tmp_path))
        asked = len(served.bodies)
        own = ["--set", "preferences.replay.reference=original"]
        rondo("fork", "whole@1", "--name", "original", "--run", "--root", str(tmp_path), *own)
        # What is asked is the probe, whatever is in the cache, and of the fork's new answers those that are not there.
        assert PROBED <= len(served.bodies) - asked <= PROBED + TINY["evaluation"]["prompts"]
    assert_same(tmp_path, "whole", tmp_path, "killed", range(3))
    store = Store.open(tmp_path)
    run = store.run("whole")
    first, second = (run.rounds()[number].meta for number in (1, 2))
    assert (first["replayed"], first["replayed_age"]) == (0, None)
    wanted = int(second["preferences"] * SHARE / (1 - SHARE))
    assert (second["replayed"], second["replayed_age"]) == (wanted, 1.0)
    assert 0 < second["replayed_share"] <= SHARE
    # All are held back by the policy that the update starts from.
    assert second["first_loss_expected"] == pytest.approx(0.6931472, abs=1e-6)
    assert second["first_loss"] == pytest.approx(0.6931472, abs=1e-5)  # float32, two engines
    answers = {
        (row["prompt_id"], row["candidate"]): row["token_ids"] for row in table(store, run, 1, "candidates").to_pylist()
    }
    before = {(row["prompt_id"], *row["candidates"]) for row in table(store, run, 1, "preferences").to_pylist()}
    for row in table(store, run, 2, "replayed").to_pylist():
        assert row["origin_round"] == 1
        assert row["policy"] == run.rounds()[0].meta["policy"]
        assert row["token_ids"] == [answers[row["prompt_id"], index] for index in row["candidates"]]
        assert (row["prompt_id"], *row["candidates"]) in before

    # Held back by the policies that they came from, they change the update, and their first loss is nobody's to know.
    original = store.run("original").rounds()[2].meta
    assert (original["replayed"], original["first_loss_expected"]) == (wanted, None)
    assert original["policy"] != second["policy"]

    # The endpoint states 90 tokens read and 10 written for each reply. What the other run was told is not paid again.
    for name, all_kept in (("whole", False), ("killed", True)):
        used = store.run(name).rounds()[2].meta["judge_usage"]["llm"]
        anew = used["replies"] - used["replies_cached"]
        assert used["replies"] == TINY["evaluation"]["prompts"] + PROBED
        assert (used["paid_tokens_in"], used["paid_tokens_out"]) == (90 * anew, 10 * anew)
        assert (used["tokens_in"], used["cost"]) == (90 * used["replies"], None)
        assert 0 < anew <= PROBED if all_kept else anew > 0  # the probe is asked whatever is in the cache
    shown = rondo("show", "whole@2", "--table", "eval_judgments", "--root", str(tmp_path)).stdout
    assert "judges of round 2: llm: " in " ".join(shown.split())

    for meta in (first, second):
        assert meta["judge_drift"] == {"llm": 0.0}
        assert meta["drifted"] == []
        assert 0 <= meta["agreement"]["llm"] <= 1
        assert set(meta["gaps"]) <= {"llm", "grammar"}
    shown = json.loads(rondo("rounds", "whole", "--root", str(tmp_path), "--json").stdout)
    assert [row["replayed"] for row in shown] == [None, 0, wanted]
    table_shown = rondo("show", "whole@2", "--table", "replayed", "--root", str(tmp_path), "--json")
    assert len(json.loads(table_shown.stdout)) == wanted
