"""What the benchmark of a round compares with does the work that it says; engines are too slow to start here."""

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks import round_peers
from benchmarks.round_contestants import Contestant
from benchmarks.round_processes import LOOK_SECONDS, usage_of
from benchmarks.round_runs import ENVIRONMENT, changed
from transformers import AutoModelForCausalLM, AutoTokenizer

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
    tokenizer = AutoTokenizer.from_pretrained(policy)

    def prompt(text: str) -> dict[str, Any]:
        return {"text": text, "token_ids": tokenizer(text)["input_ids"]}

    made_of = {"directory": str(policy), "recipe": RECIPE, "threads": 1, "log": tmp_path / "log"}
    with Contestant(round_peers.__file__, "trl", ENVIRONMENT, **made_of) as trl:
        found = trl.ask(prompts=[prompt(f"w{row} w{row + 1}") for row in range(8)])
        assert found["preferences"] == 8
        assert 16 < found["tokens"] <= 16 * RECIPE["sampling"]["max_tokens"]
        assert 0 < found["processor of sampling"] < found["processor"]
        assert trl.ask(prompts=[prompt("w1 w2")] * 4)["preferences"] == 4  # not added to those before
        with pytest.raises(SystemExit, match="the contestant 'trl' ended"):
            trl.ask(prompts=[{"text": "w1 w2", "token_ids": [7, 8, 9]}])
    assert "the prompt 'w1 w2' is not [7, 8, 9] for trl" in (tmp_path / "log").read_text()


def test_the_memory_of_a_process_is_its_largest_so_far() -> None:
    code = f"import time; held = bytearray(b'x' * (200 * {MIB})); del held; time.sleep(1)"
    process = subprocess.Popen([sys.executable, "-c", code])
    with usage_of(process.pid) as usage:
        process.wait()
    assert 200 * MIB < usage.peaks["flow"] < 500 * MIB  # twice the bytes, for a moment, and the interpreter's own


def test_the_processor_s_time_of_a_process_and_of_what_it_started_is_told_apart_and_kept() -> None:
    """Each says how much it has used; the second has ended long before the last look."""
    spend = "import time\nwhile time.process_time() < {}: pass\n"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spend.format(1.5)!r}])\n" + spend.format(
        0.8
    )
    started = time.time()
    process = subprocess.Popen([sys.executable, "-c", code + "time.sleep(1.5)"])
    with usage_of(process.pid) as usage:
        process.wait()
    whole = usage.processor(started, time.time())
    # What is used before the first look is not in it, and after the last one neither.
    assert whole["others"] == pytest.approx(1.5, abs=LOOK_SECONDS + 0.1)
    assert whole["flow"] == pytest.approx(0.8, abs=LOOK_SECONDS + 0.1)
    assert usage.processor(time.time() - 0.5, time.time())["others"] == 0


def test_changes_go_into_sections_and_judges_are_replaced() -> None:
    after = changed(RECIPE, {"judge": {"kind": "length"}, "sampling": {"max_tokens": 9}})
    assert after["judge"] == {"kind": "length"}
    assert after["sampling"] == {"candidates": 2, "max_tokens": 9}
    assert RECIPE["sampling"]["max_tokens"] == 8
