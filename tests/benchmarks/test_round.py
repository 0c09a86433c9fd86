"""What the benchmark of a round compares with does the work that it says; engines are too slow to start here."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import round_peers
from benchmarks.round_contestants import Contestant
from benchmarks.round_runs import ENVIRONMENT, changed, peaks_of
from transformers import AutoModelForCausalLM

from support.tiny import tiny_llama

MIB = 2**20
RECIPE: dict[str, Any] = {
    "name": "peers",
    "policy": {"source": "warm_start", "corpus": "film_reviews", "context": 64},
    "prompts": {"source": "generated", "corpus": "film_reviews"},
    "sampling": {"candidates": 2, "max_tokens": 8},
    "judge": {"kind": "vader"},
    "update": {"batch_size": 4, "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("policy"))


def test_the_script_starts_at_the_reference_and_learns(policy: Path, tmp_path: Path) -> None:
    """The first loss is that of a policy which is its reference; every pair is learned once."""
    draw = random.Random(3)
    answers = [
        {
            "prompt": [5, 6 + row // 2],
            "ids": [draw.randrange(4, 64) for _ in range(1 + row % 5)],
            "text": f"answer {row}",
        }
        for row in range(12)
    ]
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    round_peers.train(str(policy), RECIPE, str(tmp_path))
    losses = json.loads((tmp_path / "metrics.json").read_text())["losses"]
    assert len(losses) == 2  # six pairs in batches of four
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[1] != pytest.approx(math.log(2), abs=1e-6)
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (policy, tmp_path / "policy"))
    assert any((one != other).any() for one, other in zip(before.parameters(), after.parameters(), strict=True))


def test_trl_makes_a_pair_of_each_prompt_and_its_tokens_are_counted(policy: Path, tmp_path: Path) -> None:
    """In a process of its own: trl imports vLLM where there is one, which changes a process for good."""
    made_of = {"directory": str(policy), "recipe": RECIPE, "log": tmp_path / "log"}
    with Contestant(round_peers.__file__, "trl", ENVIRONMENT, **made_of) as trl:
        found = trl.ask(prompts=[{"text": f"w{row} w{row + 1}"} for row in range(8)])
        assert found["preferences"] == 8
        assert 16 < found["tokens"] <= 16 * RECIPE["sampling"]["max_tokens"]
        assert trl.ask(prompts=[{"text": "w1 w2"}] * 4)["preferences"] == 4  # not added to those before


def test_the_memory_of_a_process_is_its_largest_so_far() -> None:
    code = f"import time; held = bytearray(b'x' * (200 * {MIB})); del held; time.sleep(1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    with peaks_of(process.pid) as peaks:
        process.wait()
    assert 200 * MIB < peaks["flow"] < 500 * MIB  # twice the bytes, for a moment, and the interpreter's own


def test_changes_go_into_sections_and_judges_are_replaced() -> None:
    after = changed(RECIPE, {"judge": {"kind": "length"}, "sampling": {"max_tokens": 9}})
    assert after["judge"] == {"kind": "length"}
    assert after["sampling"] == {"candidates": 2, "max_tokens": 9}
    assert RECIPE["sampling"]["max_tokens"] == 8
