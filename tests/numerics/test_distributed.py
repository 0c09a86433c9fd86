"""One rank = two ranks: the same update by one process and by two that torchrun starts, on CPU by gloo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from numerics.rank_cases import CARRIED, CASES, LONG, LORA, SEED, UNEVEN, built, preferences, references
from safetensors.torch import load_file

from pipeline.dpo.update import Update, run_update
from pipeline.model.distributed import DIRECTORY, World, spread
from pipeline.model.lora import Adapter
from pipeline.model.policy import save_policy
from support.tiny import tiny_tokenizer

TESTS = Path(__file__).parents[1]
# Float32 sums in another order, over at most 13 steps that each carry on the differences of those before: weights were
# apart by 2e-7, where they had moved by 1e-2.
LOGPS = {"rel": 1e-5, "abs": 1e-4}
WEIGHTS = {"rtol": 1e-5, "atol": 2e-6}
STATES = ("state of one", "state of two", "state of two, offload")
COLUMNS = ("loss", "grad_norm", "reward_margin", "logp_chosen", "logp_rejected_change", "kl")


@pytest.fixture(scope="module")
def reference() -> dict[str, list[list[float]]]:
    return references()


@pytest.fixture(scope="module")
def ranks(reference: dict[str, list[list[float]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that two ranks left."""
    out = tmp_path_factory.mktemp("ranks")
    for name in STATES:
        (out / name).mkdir()
    (out / "references.json").write_text(json.dumps(reference))
    for name in CARRIED:
        save_policy(built(name), tiny_tokenizer(), out / f"weights of one, {name}")
    update = Update(built("llama"), preferences("pairs", reference), LONG, seed=SEED)
    update.run(lambda row: update.save(out / "state of one") if row.step == 3 else None)
    run = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    done = subprocess.run(
        [sys.executable, *run, str(TESTS / "numerics/two_ranks.py"), str(out)],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return out


def left(ranks: Path, case: str) -> Any:
    """What both ranks found: to the bit the same."""
    first, second = ((ranks / f"{case}-{rank}.json").read_text() for rank in (0, 1))
    assert first == second
    return json.loads(first)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_one_rank_is_two_ranks(case: str, ranks: Path, reference: dict[str, list[list[float]]], tmp_path: Path) -> None:
    name, settings, _ = CASES[case]
    model = built(name)
    expected = run_update(model, preferences(case, reference), settings, seed=SEED)
    found = left(ranks, case)
    save_policy(model, tiny_tokenizer(), tmp_path)
    if case == "bfloat16":
        # 8 bits of mantissa: packs of another make-up round otherwise, and gains of norms are rounded. The weights
        # move by 9e-3.
        assert found["first_loss"] == pytest.approx(expected.first_loss, rel=2e-3)
        torch.testing.assert_close(weights(ranks / case), weights(tmp_path), rtol=0, atol=1e-3)
        return
    assert found["first_loss"] == pytest.approx(expected.first_loss, rel=1e-6)
    assert [row["tokens"] for row in found["steps"]] == [row.tokens for row in expected.steps]
    for row, other in zip(found["steps"], expected.steps, strict=True):
        for column in COLUMNS:
            assert row[column] == pytest.approx(getattr(other, column), **LOGPS), (row["step"], column)
        # Before the first step all margins are zero but for rounding, and their signs mean nothing.
        assert row["accuracy"] == pytest.approx(other.accuracy) or row["step"] == 0
    for logps, other in zip(found["final_logps"], expected.final_logps, strict=True):
        assert logps == pytest.approx(other, **LOGPS)
    torch.testing.assert_close(weights(ranks / case), weights(tmp_path), **WEIGHTS)


def test_recomputed_layers_change_nothing(ranks: Path) -> None:
    """The same operations twice: equal to the bit."""
    assert left(ranks, "checkpointing") == left(ranks, "pairs")


def test_two_ranks_go_on_to_the_bit(ranks: Path) -> None:
    torch.testing.assert_close(
        weights(ranks / "resumed from state of two"), weights(ranks / "uninterrupted"), rtol=0, atol=0
    )


def test_two_ranks_go_on_where_one_stopped(ranks: Path) -> None:
    torch.testing.assert_close(
        weights(ranks / "resumed from state of one"), weights(ranks / "uninterrupted"), **WEIGHTS
    )
    assert len(left(ranks, "resumed from state of one")["steps"]) == 8


def test_one_rank_goes_on_where_two_stopped(
    ranks: Path, reference: dict[str, list[list[float]]], tmp_path: Path
) -> None:
    model = built("llama", seed=5)
    update = Update(model, preferences("pairs", reference), LONG, seed=SEED)
    assert len(update.load(ranks / "state of two")) == 4
    update.run()
    save_policy(model, tiny_tokenizer(), tmp_path)
    torch.testing.assert_close(weights(tmp_path), weights(ranks / "uninterrupted"), **WEIGHTS)


@pytest.mark.parametrize("place", ["offload", "offload, resumed"])
def test_moments_in_main_memory_change_no_bit_of_two_ranks(place: str, ranks: Path) -> None:
    """Nor does what is saved: the files of the state are those of two ranks without."""
    torch.testing.assert_close(weights(ranks / place), weights(ranks / "uninterrupted"), rtol=0, atol=0)
    plain, offload = (load_file(ranks / name / "optimizer.safetensors") for name in STATES[1:])
    torch.testing.assert_close(offload, plain, rtol=0, atol=0)


def test_each_rank_takes_its_own_parts_of_a_step(ranks: Path) -> None:
    """Seen by each rank in 8 steps, of which none left moments beside the weights."""
    count = len(list(built("llama").parameters()))
    parts = [json.loads((ranks / f"offload-{rank}.json").read_text()) for rank in (0, 1)]
    assert [sum(own) for own in parts] == [8 * count, 8 * count]
    assert 8 * 2 < len(parts[1]) < len(parts[0]) < 8 * count


@pytest.mark.parametrize("name", CARRIED)
def test_weights_pass_through_two_ranks_unchanged(name: str, ranks: Path) -> None:
    """Loaded by each rank in part, gathered and saved: the same names, one tensor for tied ones, the same bits."""
    places = (f"weights of one, {name}", f"weights again, {name}")
    before, after = (weights(ranks / place) for place in places)
    assert "lm_head.weight" not in after or name == "mixtral"
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    configs = [json.loads((ranks / place / "config.json").read_text()) for place in places]
    assert configs[0] == configs[1]


def test_an_adapter_is_trained_by_two_ranks(
    ranks: Path, reference: dict[str, list[list[float]]], tmp_path: Path
) -> None:
    groups = preferences("pairs", reference)
    model = built("llama")
    adapter = Adapter(model, LORA, seed=SEED)
    trained = run_update(model, groups, UNEVEN, seed=SEED).final_logps
    adapter.save(tiny_tokenizer(), tmp_path)
    name = "adapter_model.safetensors"
    torch.testing.assert_close(load_file(ranks / "adapter" / name), load_file(tmp_path / name), **WEIGHTS)
    found = left(ranks, "adapter")
    assert found["loaded"] == found["trained"] != found["empty"]
    for key, expected in (("trained", trained), ("empty", reference["pairs"])):
        for logps, other in zip(found[key], expected, strict=True):
            assert logps == pytest.approx(other, **LOGPS)


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("loss", "NonFiniteError", r"loss of step 0 is not finite for \d+ preferences: prompt-\d+ .*not taken"),
        ("gradient", "NonFiniteError", r"gradient of step 0 is not finite.*layers\.1\.mlp\.up_proj\.weight.*prompt-"),
        ("memory", "OutOfMemoryError", r"one of 2 devices .* pack of 35 tokens .*set update\.token_budget to 17"),
        ("weights", "NonFiniteError", r"weight model\.norm\.weight is not finite before the first step"),
        ("reference", "FirstLossError", r"first loss is .* and theory gives 0\.693147"),
    ],
)
def test_a_fault_on_one_rank_ends_both_with_one_error(case: str, kind: str, words: str, ranks: Path) -> None:
    found_kind, message = left(ranks, case)
    assert found_kind == kind
    assert re.search(words, message)


@given(sizes=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 200), ranks_=st.integers(2, 5))
def test_packs_are_spread_evenly(sizes: list[int], budget: int, ranks_: int) -> None:
    """Each preference once, no pack above the budget, as many packs for each rank, near in size within a pass."""
    packs = spread(sizes, budget, ranks_)
    assert sorted(index for pack in packs for index in pack) == list(range(len(sizes)))
    tokens = [sum(sizes[index] for index in pack) for pack in packs]
    assert max(tokens) <= budget
    assert len(packs) % ranks_ == 0
    assert tokens == sorted(tokens, reverse=True)
    assert packs == spread(sizes, budget, ranks_)
    # The pack that got the last member was the smallest before it did.
    assert max(tokens) - min(tokens) <= max(sizes, default=0)


def test_ranks_on_gpus_take_a_card_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rank of the second of two machines, before any word between ranks; no GPU is here."""
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "3"), ("WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(DIRECTORY, raising=False)
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: calls.append((backend, more["device_id"])))
    world = World.join("cuda")
    card = torch.device("cuda", 1)
    assert (world.rank, world.size, world.place, world.device) == (3, 4, 1, card)
    assert calls == [("set_device", card), ("nccl", card)]
