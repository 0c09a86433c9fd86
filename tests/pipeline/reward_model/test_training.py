"""A reward model is fitted, saved, read by its judge, and refused where it must be."""

import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.errors import ConfigError, DataError, JudgeError, NonFiniteError
from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.records import CANDIDATES, JUDGMENTS, PREFERENCES, PROMPTS, to_table
from pipeline.reward_model import losses as losses
from pipeline.reward_model.config import RewardTrainingConfig
from pipeline.reward_model.data import RatedAnswer, RewardPair, held_out_prompts, rated_answers, reward_pairs, split
from pipeline.reward_model.training import fit_reward_model
from support.tiny import tiny_llama, tiny_tokenizer

GOOD, BAD = " w7", " w9"


def prompt(number: int) -> JudgeItem:
    return JudgeItem(prompt_id=f"p{number}", prompt_text=f"w{10 + number % 40}", candidates=())


def answer(index: int, text: str) -> JudgedCandidate:
    return JudgedCandidate(index=index, text=text, finish_reason="stop")


def learnable(count: int = 60) -> tuple[list[RewardPair], list[RatedAnswer]]:
    """Answers with more of one word than of another are better; seed 0."""
    rng = random.Random(0)
    pairs, ratings = [], []
    for number in range(count):
        words = [[rng.choice((GOOD, BAD)) for _ in range(4)] for _ in range(2)]
        better, worse = sorted(words, key=lambda text: -text.count(GOOD))
        margin = better.count(GOOD) - worse.count(GOOD)
        if margin == 0:
            better, margin = [GOOD, *worse], 1
        a, b = answer(0, "".join(better)), answer(1, "".join(worse))
        pairs.append(RewardPair(prompt=prompt(number), chosen=a, rejected=b, margin=float(margin)))
        ratings += [
            RatedAnswer(prompt=prompt(number), answer=one, rating=3.0 + one.text.count(GOOD) - one.text.count(BAD))
            for one in (a, b)
        ]
    return pairs, ratings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


def settings(**changes: Any) -> RewardTrainingConfig:
    return RewardTrainingConfig.model_validate(
        {"epochs": 4, "learning_rate": 3e-3, "batch_size": 8, "held_out": 0.3, **changes}
    )


OBJECTIVES = (
    "bradley_terry", "scaled_bradley_terry", "regression_then_bradley_terry", "thurstone", "expected_logistic"
)  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_learns_what_it_was_not_shown_and_its_judge_agrees(base: Path, tmp_path: Path, objective: str) -> None:
    pairs, ratings = learnable()
    config, steps = settings(objective=objective), []
    report = fit_reward_model(base, pairs, ratings, config, tmp_path, on_step=lambda *seen: steps.append(seen))
    assert report.last_loss < report.first_loss / 2
    assert report.calibration.accuracy > 0.9  # a coin would get 0.5; the words decide
    assert (report.pairs, report.prompts, report.held_out_prompts, report.calibration.pairs) == (42, 42, 18, 18)
    assert steps[-1][:2] == (report.steps, report.steps)
    regresses = objective == "regression_then_bradley_terry"
    assert report.ratings == (84 if regresses else 0)
    assert report.steps == 4 * 6 + (2 * 11 if regresses else 0)  # ceil(42 / 8) and ceil(84 / 8) a pass

    states_std, in_logits = objective in ("thurstone", "expected_logistic"), objective == "expected_logistic"
    judge = make_judge(RewardModelConfig(kind="reward_model", path=str(tmp_path), gives_std=states_std))
    held = split(pairs, held_out_prompts(pairs, 0.3, 0))[1]
    probabilities = []
    for pair in held:
        item = JudgeItem(prompt_id="p", prompt_text=pair.prompt.prompt_text, candidates=(pair.chosen, pair.rejected))
        chosen, rejected = judge.judge([item])
        assert (chosen.score_std is not None) == states_std
        # Of logits, the judge's deviation has that of a logistic choice in it.
        stds = [math.sqrt(j.score_std**2 - 1.702**2 / 2) if in_logits else j.score_std for j in (chosen, rejected)]
        said = [
            [j.score, *([math.log(std)] if states_std else [])] for j, std in zip((chosen, rejected), stds, strict=True)
        ]
        outputs = (torch.tensor([one], dtype=torch.float64) for one in said)
        probabilities.append(losses.order_probability(*outputs, logits=in_logits))
    right = sum(float(p > 0.5) for p in probabilities) / len(held)
    assert right == report.calibration.accuracy
    confidence = sum(float(max(p, 1 - p)) for p in probabilities) / len(held)
    # float32 in batches of other lengths.
    assert confidence == pytest.approx(report.calibration.mean_confidence, abs=1e-5)


def test_uncertainty_is_the_old_name_of_thurstone() -> None:
    assert settings(objective="uncertainty") == settings(objective="thurstone")


def test_the_same_fit_twice_is_the_same_to_the_bit(base: Path, tmp_path: Path) -> None:
    pairs, ratings = learnable()
    reports = [
        fit_reward_model(base, pairs, ratings, settings(epochs=1), tmp_path / name) for name in ("first", "second")
    ]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert asdict(reports[0]) == asdict(reports[1])
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_the_first_loss_of_equal_answers_is_ln_2_and_soft_labels_count(base: Path, tmp_path: Path) -> None:
    """Where a label is 1/2, no order is learned: the reward of the better answer does not rise above the other's."""
    pairs, _ = learnable()
    unsure = [RewardPair(prompt=p.prompt, chosen=p.chosen, rejected=p.rejected, margin=1, label=0.5) for p in pairs]
    report = fit_reward_model(base, unsure, [], settings(), tmp_path)
    assert report.last_loss == pytest.approx(0.6931, abs=0.02)
    assert report.calibration.mean_confidence < 0.6


def test_held_out_prompts_depend_on_seed_and_ids_alone() -> None:
    pairs, _ = learnable()
    held = held_out_prompts(pairs, 0.3, seed=0)
    assert held == held_out_prompts(pairs[::-1], 0.3, seed=0) != held_out_prompts(pairs, 0.3, seed=1)
    assert len(held) == 18
    twice = [*pairs, *pairs]
    fitted, judged = split(twice, held_out_prompts(twice, 0.3, seed=0))
    assert {p.prompt.prompt_id for p in fitted}.isdisjoint(p.prompt.prompt_id for p in judged)


def test_a_rankings_pairs_and_the_ratings_of_a_round() -> None:
    prompts = to_table([prompt_row("p1")], PROMPTS)
    candidates = to_table([candidate_row("p1", k) for k in range(3)], CANDIDATES)
    ranking = preference_row("ranking", [2, 0, 1], [0.9, 0.5, 0.1])
    dropped = preference_row("dropped", [], [])
    pairs = reward_pairs(prompts, candidates, to_table([ranking, dropped], PREFERENCES))
    found = [(p.chosen.index, p.rejected.index, pytest.approx(p.margin), p.label) for p in pairs]
    assert found == [(2, 0, 0.4, 1.0), (2, 1, 0.8, 1.0), (0, 1, 0.4, 1.0)]
    soft = preference_row("pair", [0, 1], [0.5, 0.1]) | {"soft_label": 0.75}
    (pair,) = reward_pairs(prompts, candidates, to_table([soft], PREFERENCES))
    assert pair.label == 0.75
    with pytest.raises(DataError, match="names candidate 7 of prompt p1"):
        reward_pairs(prompts, candidates, to_table([preference_row("pair", [0, 7], [0.5, 0.1])], PREFERENCES))
    rows = [judgment_row(0, 0.5), judgment_row(1, None, "too_long"), judgment_row(2, 0.9)]
    rated = rated_answers(prompts, candidates, to_table(rows, JUDGMENTS))
    assert [(r.answer.index, r.rating) for r in rated] == [(0, 0.5), (2, 0.9)]


def test_too_little_and_useless_data(base: Path, tmp_path: Path) -> None:
    pairs, ratings = learnable()
    with pytest.raises(DataError, match="9 preferences over 9 prompts are too few"):
        fit_reward_model(base, pairs[:9], ratings, settings(), tmp_path / "few")
    flat = [RewardPair(prompt=p.prompt, chosen=p.chosen, rejected=p.rejected, margin=0.0) for p in pairs]
    with pytest.raises(DataError, match="margins of 42 pairs are all 0"):
        fit_reward_model(base, flat, [], settings(objective="scaled_bradley_terry"), tmp_path / "flat")
    with pytest.raises(DataError, match="0 ratings are all alike"):
        fit_reward_model(base, pairs, [], settings(objective="regression_then_bradley_terry"), tmp_path / "alike")
    assert not any(tmp_path.iterdir())


def test_bases_that_cannot_serve(base: Path, tmp_path: Path) -> None:
    pairs, _ = learnable()
    without = tiny_llama(tmp_path / "without")
    tokenizer = AutoTokenizer.from_pretrained(without)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(without)
    with pytest.raises(ConfigError, match="has no padding token"):
        fit_reward_model(without, pairs, [], settings(), tmp_path / "to")
    with pytest.raises(ConfigError, match="there is no directory"):
        fit_reward_model(tmp_path / "none", pairs, [], settings(), tmp_path / "to")
    cut = tiny_llama(tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    save_file({n: t for n, t in weights.items() if "layers.1." not in n}, cut / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="which would be random"):
        fit_reward_model(cut, pairs, [], settings(), tmp_path / "to")
    fit_reward_model(base, pairs, [], settings(epochs=1), tmp_path / "classifier")
    headless = load_file(tmp_path / "classifier" / "model.safetensors")
    del headless["score.weight"]
    save_file(headless, tmp_path / "classifier" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 'score.weight'.*random"):  # a classifier keeps its own head
        fit_reward_model(tmp_path / "classifier", pairs, [], settings(), tmp_path / "to")
    larger = tiny_llama(tmp_path / "larger")
    tiny_tokenizer(70).save_pretrained(larger)
    with pytest.raises(ConfigError, match="has token ids up to 69 and embeddings up to 63"):
        fit_reward_model(larger, pairs, [], settings(), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_fit_that_leaves_the_numbers_stops_before_the_step(tmp_path: Path) -> None:
    broken = tiny_llama(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"].fill_(torch.inf)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteError, match=r"of step 1 is not finite \(prompts p\d+"):
        fit_reward_model(broken, learnable()[0], [], settings(), tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_promise_of_standard_deviations_that_the_model_does_not_keep(base: Path, tmp_path: Path) -> None:
    fit_reward_model(base, learnable()[0], [], settings(epochs=1), tmp_path)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 1
    with pytest.raises(JudgeError, match="gives_std is set"):
        make_judge(RewardModelConfig(kind="reward_model", path=str(tmp_path), gives_std=True))


def prompt_row(prompt_id: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id, "text": "w1", "messages": None, "token_ids": [1], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip


def candidate_row(prompt_id: str, candidate: int) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id, "candidate": candidate, "token_ids": [1, candidate], "text": f"w{candidate}",
        "logprobs": [-1.0, -1.0], "finish_reason": "stop", "seed": candidate, "policy": "x",
    }  # fmt: skip


def preference_row(kind: str, order: list[int], scores: list[float]) -> dict[str, Any]:
    row = dict.fromkeys(PREFERENCES.names) | {
        "prompt_id": "p1", "kind": kind, "candidates": order, "scores": scores, "margin": None, "soft_label": None,
        "reference_logps": [-1.0] * len(order), "token_counts": [2] * len(order), "rule": "full_ranking",
        "drop_reason": None if order else "tie", "policy": "x",
    }  # fmt: skip
    assert isinstance(row, dict)
    return row


def judgment_row(candidate: int, score: float | None, status: str = "ok") -> dict[str, Any]:
    return {
        "prompt_id": "p1", "candidate": candidate, "score": score, "score_std": None, "components": [],
        "rationale": None, "judge": "j", "judge_version": "1", "status": status, "latency": 0.0, "raw": None,
    }  # fmt: skip


def test_tables_have_no_columns_that_are_unknown_here() -> None:
    assert isinstance(to_table([preference_row("dropped", [], [])], PREFERENCES), pa.Table)


def test_the_last_batch_of_a_pass_moves_the_weights_by_its_share(base: Path, tmp_path: Path) -> None:
    """Ten pairs in batches of eight: the second step has two of eight, after half of the schedule."""
    pairs, _ = learnable(count=14)
    rates: list[float] = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, _args, _kwargs: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        report = fit_reward_model(base, pairs, [], settings(epochs=1, learning_rate=1e-3), tmp_path)
    finally:
        hook.remove()
    assert report.pairs == 10
    assert rates == pytest.approx([1e-3, 1e-3 * 0.5 * 2 / 8])
