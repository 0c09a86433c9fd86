"""The fit of a reward model: a sequence classifier on prompt and answer, by one of the losses of ``reward_losses``.

Left out: several devices, half precision, adapters, gradient accumulation.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.errors import DataError, NonFiniteError
from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.judges.reward_model import encode
from pipeline.model.policy import max_context
from pipeline.reward_model import losses as losses
from pipeline.reward_model.base_model import in_logits, load_classifier, load_tokenizer
from pipeline.reward_model.calibration import Calibration, calibrate
from pipeline.reward_model.config import RewardTrainingConfig
from pipeline.reward_model.data import RatedAnswer, RewardPair, held_out_prompts, split

MAX_GRAD_NORM = 1.0
NAMED = 8
OnStep = Callable[[int, int, float], None]
"""Called after each step with its number, from 1, the number of all, and its loss."""


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """What a fit did. Its calibration is that of the pairs whose prompts it never saw.

    Attributes:
        pairs, ratings: those that it was fitted to; ratings only if the objective reads them.
        prompts, held_out_prompts: how many prompts they, and the pairs held out, come from.
        too_long: pairs and ratings left out, for an answer longer than the base reads.
        margin_scale: the margin that weighs 1; None if margins are no weights.
        rating_mean, rating_std: the rating that is 0 to the regression, and the difference that is 1.
        first_loss, last_loss: of the comparisons, each the mean over a step.
    """

    pairs: int
    ratings: int
    prompts: int
    held_out_prompts: int
    too_long: int
    margin_scale: float | None
    rating_mean: float | None
    rating_std: float | None
    steps: int
    first_loss: float
    last_loss: float
    calibration: Calibration


@dataclass(frozen=True)
class _Pair:
    prompt_id: str
    chosen: list[int]
    rejected: list[int]
    weight: float
    label: float


@dataclass(frozen=True)
class _Rating:
    prompt_id: str
    ids: list[int]
    rating: float


_Row = TypeVar("_Row", _Pair, _Rating)


def fit_reward_model(
    base: str | Path,
    pairs: Sequence[RewardPair],
    ratings: Sequence[RatedAnswer],
    config: RewardTrainingConfig,
    directory: Path,
    *,
    on_step: OnStep | None = None,
) -> RewardReport:
    """Fits a reward model and saves it with its tokenizer, in the hub's format, as the judge ``reward_model`` reads it.

    The same arguments give the same weights to the bit on CPU, with the same number of threads.

    Args:
        base: a checkpoint, or an id on the hub: a language model gets a new head, a classifier keeps its own.
        ratings: read by ``regression_then_bradley_terry`` alone.

    Raises:
        ConfigError: the base cannot be loaded, or has no padding token.
        DataError: too few pairs, or margins or ratings that are all alike, if they are used.
        JudgeError: conversations, and the base has no chat template.
        NonFiniteError: a loss or a gradient left the numbers; the step was not taken, and nothing is saved.
    """
    held = held_out_prompts(pairs, config.held_out, config.seed)
    tokenizer = load_tokenizer(base)
    encoder = _Encoder(tokenizer, config, str(base), max_context(base))
    fitted, judged = (encoder.pairs(part) for part in split(pairs, held))
    rated, scale = _standardised(encoder.ratings(split(ratings, held)[0])) if _regresses(config) else ([], None)
    margin_scale = None
    if config.objective == "scaled_bradley_terry":
        fitted, margin_scale = _weighted(fitted)
    for name, part in (("fit", fitted), ("hold out", judged)):
        if not part:
            raise DataError(f"no pair is short enough for the base '{base}' to {name}: it reads {encoder.context}")
    with _threads(config.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = load_classifier(base, tokenizer, config).to(config.device)
        fit = _Fit(model, tokenizer.pad_token_id, config, on_step)
        trained = fit.run(fitted, rated)
        calibration = calibrate(fit.probabilities(judged), [pair.label for pair in judged])
    model.to("cpu").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return RewardReport(
        pairs=len(fitted),
        ratings=len(rated),
        prompts=len({pair.prompt_id for pair in fitted}),
        held_out_prompts=len({pair.prompt_id for pair in judged}),
        too_long=encoder.too_long,
        margin_scale=margin_scale,
        rating_mean=scale and scale[0],
        rating_std=scale and scale[1],
        steps=fit.steps,
        first_loss=trained[0],
        last_loss=trained[-1],
        calibration=calibration,
    )


class _Encoder:
    """Examples as the token ids that the judge will read; counts what is too long."""

    def __init__(self, tokenizer: Any, config: RewardTrainingConfig, base: str, context: int) -> None:
        self._tokenizer, self._config, self._base = tokenizer, config, base
        self.context = context
        self.too_long = 0

    def pairs(self, examples: Sequence[RewardPair]) -> list[_Pair]:
        found = []
        for example in examples:
            chosen, rejected = (self._ids(example.prompt, answer) for answer in (example.chosen, example.rejected))
            if self._fits(chosen, rejected):
                found.append(_Pair(example.prompt.prompt_id, chosen, rejected, abs(example.margin), example.label))
        return found

    def ratings(self, examples: Sequence[RatedAnswer]) -> list[_Rating]:
        found = []
        for example in examples:
            ids = self._ids(example.prompt, example.answer)
            if self._fits(ids):
                found.append(_Rating(example.prompt.prompt_id, ids, example.rating))
        return found

    def _ids(self, item: JudgeItem, answer: JudgedCandidate) -> list[int]:
        config = self._config
        return encode(
            self._tokenizer, item, answer, without_template=config.without_template, of=f"the base '{self._base}'"
        )

    def _fits(self, *sequences: list[int]) -> bool:
        fits = all(0 < len(ids) <= self.context for ids in sequences)
        self.too_long += not fits
        return fits


class _Fit:
    """A model, and the steps that it is taken through."""

    def __init__(self, model: Any, padding: int, config: RewardTrainingConfig, on_step: OnStep | None) -> None:
        self._model, self._padding, self._config = model, padding, config
        self._on_step = on_step or (lambda _step, _steps, _loss: None)
        self.steps = 0
        self._total = 0

    def run(self, pairs: Sequence[_Pair], ratings: Sequence[_Rating]) -> list[float]:
        """Fits the ratings, if there are any, then the comparisons, whose losses it returns."""
        config = self._config
        plan: list[tuple[Sequence[Any], int, Callable[[Any], Tensor]]] = [(pairs, config.epochs, self._pair_losses)]
        if ratings:
            plan.insert(0, (ratings, config.regression_epochs, self._rating_losses))
        self._total = sum(epochs * -(-len(rows) // config.batch_size) for rows, epochs, _ in plan)
        found: list[float] = []
        for rows, epochs, loss_of in plan:
            found = self._fit(rows, epochs, loss_of)
        return found

    def probabilities(self, pairs: Sequence[_Pair]) -> list[float]:
        """Computes the probability of each pair's order."""
        self._model.eval()
        found: list[float] = []
        for start in range(0, len(pairs), self._config.batch_size):
            with torch.inference_mode():
                outputs = self._outputs(pairs[start : start + self._config.batch_size])
                halves = (half.double() for half in outputs)
                found += losses.order_probability(*halves, logits=in_logits(self._config)).tolist()
        return found

    def _fit(self, rows: Sequence[_Row], epochs: int, loss_of: Callable[[list[_Row]], Tensor]) -> list[float]:
        config = self._config
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)
        self._model.train()
        batches = [batch for epoch in range(epochs) for batch in self._batches(rows, epoch)]
        found = []
        for number, batch in enumerate(batches):
            for group in optimizer.param_groups:
                # A last batch of fewer rows moves the weights by its share, as in the update of a round.
                share = len(batch) / min(config.batch_size, len(rows))
                group["lr"] = config.learning_rate * (1 - number / len(batches)) * share
            found.append(self._step(optimizer, weights, batch, loss_of(batch)))
        return found

    def _batches(self, rows: Sequence[_Row], epoch: int) -> Iterator[list[_Row]]:
        order = list(rows)
        random.Random(f"{self._config.seed}/{epoch}").shuffle(order)  # noqa: S311  nothing here is secret
        for start in range(0, len(order), self._config.batch_size):
            yield order[start : start + self._config.batch_size]

    def _step(self, optimizer: Any, weights: list[Any], batch: Sequence[_Pair | _Rating], losses_: Tensor) -> float:
        loss = losses_.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            bad = [row.prompt_id for row, one in zip(batch, losses_.tolist(), strict=True) if not abs(one) < torch.inf]
            named = ", ".join((bad or [row.prompt_id for row in batch])[:NAMED])
            raise NonFiniteError(
                f"the loss {loss.item():g} or the gradient's norm {norm.item():g} of step {self.steps + 1} is not "
                f"finite (prompts {named}); the step was not taken: lower the learning rate "
                f"{self._config.learning_rate:g}, or look at the base's weights"
            )
        optimizer.step()
        self.steps += 1
        value = float(loss.item())
        self._on_step(self.steps, self._total, value)
        return value

    def _pair_losses(self, batch: list[_Pair]) -> Tensor:
        chosen_P_H, rejected_P_H = self._outputs(batch)
        label_P, weight_P = (
            torch.tensor(values, device=chosen_P_H.device)
            for values in ([pair.label for pair in batch], [pair.weight for pair in batch])
        )
        if self._config.objective == "thurstone":
            return losses.thurstone(chosen_P_H, rejected_P_H, label_P)
        if self._config.objective == "expected_logistic":
            return losses.expected_logistic(chosen_P_H, rejected_P_H, label_P)
        chosen_P, rejected_P = chosen_P_H[:, 0], rejected_P_H[:, 0]
        if self._config.objective == "scaled_bradley_terry":
            return losses.scaled_bradley_terry(chosen_P, rejected_P, weight_P, label_P)
        return losses.bradley_terry(chosen_P, rejected_P, label_P)

    def _rating_losses(self, batch: list[_Rating]) -> Tensor:
        reward_A_H = self._forward([row.ids for row in batch])
        return losses.regression(reward_A_H[:, 0], torch.tensor([row.rating for row in batch]).to(reward_A_H))

    def _outputs(self, batch: Sequence[_Pair]) -> tuple[Tensor, Tensor]:
        both = self._forward([*(pair.chosen for pair in batch), *(pair.rejected for pair in batch)])
        chosen_P_H, rejected_P_H = both.chunk(2)
        return chosen_P_H, rejected_P_H

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        longest, device = max(map(len, rows)), self._config.device
        ids_B_T = torch.tensor([[*row, *[self._padding] * (longest - len(row))] for row in rows], device=device)
        mask_B_T = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        logits_B_H: Tensor = self._model(input_ids=ids_B_T, attention_mask=mask_B_T).logits
        return logits_B_H.float()


def _regresses(config: RewardTrainingConfig) -> bool:
    return config.objective == "regression_then_bradley_terry"


def _standardised(ratings: Sequence[_Rating]) -> tuple[list[_Rating], tuple[float, float]]:
    """Scales the ratings to mean 0 and standard deviation 1, and returns what these were."""
    values = [row.rating for row in ratings]
    mean, spread = (fmean(values), pstdev(values)) if values else (0.0, 0.0)
    if not spread > 0:
        raise DataError(f"the {len(values)} ratings are all alike: there is nothing to regress on, use bradley_terry")
    return [_Rating(row.prompt_id, row.ids, (row.rating - mean) / spread) for row in ratings], (mean, spread)


def _weighted(pairs: Sequence[_Pair]) -> tuple[list[_Pair], float]:
    """Scales the margins to mean 1, as weights of the pairs, and returns the mean that they had."""
    scale = fmean(pair.weight for pair in pairs) if pairs else 0.0
    if not scale > 0:
        raise DataError(f"the margins of {len(pairs)} pairs are all 0, and would weigh nothing: use bradley_terry")
    return [_Pair(p.prompt_id, p.chosen, p.rejected, p.weight / scale, p.label) for p in pairs], scale


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
