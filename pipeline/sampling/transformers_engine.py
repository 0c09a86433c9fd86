"""A sampler in plain transformers: slow, small, easy to check. Tests use it, and machines without vLLM."""

from collections import defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import SamplingConfig
from pipeline.errors import ConfigError, EngineError
from pipeline.model.checkpoint_files import weight_files
from pipeline.model.model_config import length_boundaries
from pipeline.model.policy import choose_context, load_policy, load_weights, put_tensors, tensors_by_saved_name
from pipeline.model.shared_memory import read_piece
from pipeline.model.weight_names import Files, WeightNames, weightless_like
from pipeline.model.weight_pieces import WantedWeights, WeightPiece
from pipeline.packing.packing import length_class
from pipeline.sampling.base import (
    Candidate,
    Sampling,
    SamplingRequest,
    check_lengths,
    check_sequences,
    stop_tokens,
)

Row = tuple[int, int]
"""Index of a request, and of one of its candidates."""


class TransformersSampler:
    """Samples with a key-value cache, prompts of one length together, so that no row is ever padded.

    Args:
        directory: checkpoint of the policy.
        config: the recipe's sampling.
        device: where the model runs, in float32.
        threads: CPU threads of this process, if given; another number changes results in the last bits.
    """

    def __init__(
        self,
        directory: Path,
        config: SamplingConfig,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._context = choose_context(directory, config.context)
        self._stop = stop_tokens(directory)
        self._max_sequences = config.max_sequences
        self._model, _ = load_policy(directory, device=device)
        self._boundaries = length_boundaries(self._model.config)
        self._in_progress = 0
        self._names = WeightNames(weightless_like(self._model), Files(weight_files(directory)).shapes)
        self._arrived: set[str] = set()

    def sample(self, requests: Sequence[SamplingRequest], config: SamplingConfig) -> Sampling:
        """Samples as ``Sampler`` says.

        Random numbers depend on a candidate's seed alone, not on its batch; calls share none.
        """
        check_lengths(requests, config.max_tokens, self._context)
        rows_by_length: dict[int, list[Row]] = defaultdict(list)
        for index, request in enumerate(requests):
            rows_by_length[len(request.token_ids)] += [(index, k) for k in range(config.candidates)]
        found: dict[Row, Candidate] = {}
        tokens = 0
        self._in_progress += 1
        try:
            for rows in rows_by_length.values():
                for start in range(0, len(rows), self._max_sequences):
                    batch = rows[start : start + self._max_sequences]
                    pairs = [(requests[index], k) for index, k in batch]
                    turns = self._sample_batch(pairs, config)
                    while True:
                        try:
                            running = next(turns)
                        except StopIteration as end:
                            found |= zip(batch, end.value, strict=True)
                            break
                        tokens += running
                        yield len(found), tokens
            yield len(found), tokens
        finally:
            self._in_progress -= 1
        return [found[index, k] for index in range(len(requests)) for k in range(config.candidates)]

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Scores as ``Sampler`` says, one forward pass a sequence, so that no score depends on its neighbours."""
        check_sequences(sequences, self._context)
        with torch.inference_mode():
            return [self._score_one(prompt, answer) for prompt, answer in sequences]

    def load_weights(self, directory: Path) -> None:
        """Replaces the weights as ``Sampler`` says."""
        if self._in_progress:
            raise EngineError("the sampler cannot take new weights while it samples: take the turns that are left")
        try:
            load_weights(self._model, directory)
        except ConfigError as error:
            raise EngineError(f"the sampler cannot take these weights: {error}") from error
        self._arrived = set()  # what had come of other weights is gone
        self._stop = stop_tokens(directory)

    def wanted_weights(self) -> WantedWeights:
        """Says what it wants as ``WeightReceiver`` says."""
        return WantedWeights(self._names.files, "float32")

    def take_weights(self, piece: WeightPiece) -> None:
        """Takes a piece of new weights as ``WeightReceiver`` says."""
        if self._in_progress:
            raise EngineError("the sampler cannot take new weights while it samples: take the turns that are left")
        try:
            new = dict(read_piece(piece))
        except OSError as error:
            raise EngineError(f"the trainer's memory cannot be read ({error}): start a new sampler") from error
        own = tensors_by_saved_name(self._model)
        for group in self._names.groups:
            if group.names[0] in new:
                put_tensors(own, self._names.in_memory(group, {name: new[name] for name in group.names}))
        self._arrived |= new.keys()

    def finish_weights(self, policy: str) -> None:
        """Ends the new weights as ``WeightReceiver`` says."""
        lacking, self._arrived = self._names.files.keys() - self._arrived, set()
        if lacking:
            raise EngineError(f"of policy {policy} {len(lacking)} weights have not come: start a new sampler")

    def name_weights(self, policy: str) -> None:
        """Does nothing: it keeps no name."""

    def _score_one(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        ids_1_T = torch.tensor([[*prompt, *answer]], device=self._device)
        logits_T_V = self._model(input_ids=ids_1_T).logits[0, len(prompt) - 1 : -1].float()
        logps_T = logits_T_V.log_softmax(-1).gather(-1, ids_1_T[0, len(prompt) :, None])[:, 0]
        values: list[float] = logps_T.tolist()
        return values

    def _next_logits(self, ids_B_T: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        with torch.inference_mode():
            output = self._model(input_ids=ids_B_T, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float().cpu(), output.past_key_values

    def _sample_batch(
        self, rows: Sequence[tuple[SamplingRequest, int]], config: SamplingConfig
    ) -> Generator[int, None, list[Candidate]]:
        """Samples a token of each row that is not at its end in each turn, and yields their number."""
        # All random numbers of a candidate are drawn up front from its own seed.
        seeds = [request.seed + k for request, k in rows]
        uniforms_B_T = torch.from_numpy(
            np.stack([np.random.default_rng(seed).random(config.max_tokens) for seed in seeds])
        )
        ids_B_T = torch.tensor([list(request.token_ids) for request, _ in rows], device=self._device)
        stop = torch.tensor(sorted(self._stop), dtype=torch.long)
        running_B = torch.ones(len(rows), dtype=torch.bool)
        tokens: list[torch.Tensor] = []
        logps: list[torch.Tensor] = []
        cache = None
        length = len(rows[0][0].token_ids)
        for step in range(config.max_tokens):
            if step and self._class(length + step) != self._class(length + step - 1):
                prompts_B_T = torch.tensor([list(request.token_ids) for request, _ in rows])
                # The keys in the cache were rotated as those of a shorter sequence.
                ids_B_T, cache = torch.cat([prompts_B_T, torch.stack(tokens, 1)], 1).to(self._device), None
            logits_B_V, cache = self._next_logits(ids_B_T, cache)
            tokens_B = _draw(logits_B_V, uniforms_B_T[:, step], config)
            tokens.append(tokens_B)
            logps.append(logits_B_V.log_softmax(-1).gather(-1, tokens_B[:, None])[:, 0])
            yield int(running_B.sum())
            running_B &= ~torch.isin(tokens_B, stop)
            if not running_B.any():
                break
            ids_B_T = tokens_B[:, None].to(self._device)
        tokens_B_T, logps_B_T = torch.stack(tokens, 1).tolist(), torch.stack(logps, 1).tolist()
        return [
            self._candidate(request, k, seed, row_tokens, row_logps)
            for (request, k), seed, row_tokens, row_logps in zip(rows, seeds, tokens_B_T, logps_B_T, strict=True)
        ]

    def _candidate(
        self, request: SamplingRequest, k: int, seed: int, tokens: list[int], logps: list[float]
    ) -> Candidate:
        """Cuts a row off after its first end of sequence: the batch went on until its last row ended.

        An answer that grew beyond a boundary of lengths is scored as the sequence that it became: its first tokens had
        been drawn as parts of a shorter one.
        """
        end = next((index for index, token in enumerate(tokens) if token in self._stop), None)
        length = len(tokens) if end is None else end + 1
        tokens, logps = tokens[:length], logps[:length]
        before = len(request.token_ids)
        if self._class(before) != self._class(before + length):
            with torch.inference_mode():
                logps = self._score_one(request.token_ids, tokens)
        return Candidate(request.prompt_id, k, tokens, logps, "length" if end is None else "stop", seed)

    def _class(self, tokens: int) -> int:
        return length_class(tokens, self._boundaries)


def _draw(logits_B_V: torch.Tensor, uniforms_B: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Draws one token a row, by inverting the cumulative distribution at a uniform number in [0, 1).

    At temperature 0 it takes the likeliest one, the first of several.

    The nucleus is the smallest set of most probable tokens whose mass reaches top-p (arXiv:1904.09751).
    """
    if config.temperature == 0:
        return logits_B_V.argmax(-1)
    scaled_B_V = (logits_B_V.double() / config.temperature).softmax(-1)
    probs_B_V, order_B_V = torch.sort(scaled_B_V, dim=-1, descending=True, stable=True)
    mass_B_V = probs_B_V.cumsum(-1)
    # The first token is always kept: its preceding mass is 0.
    kept_B_V = torch.where(mass_B_V - probs_B_V < config.top_p, probs_B_V, 0.0).cumsum(-1)
    targets_B_1 = uniforms_B[:, None] * kept_B_V[:, -1:]
    ranks_B_1 = torch.searchsorted(kept_B_V, targets_B_1, right=True)
    # Rounding may push a target to the very end of the mass: stay on the last token that has any.
    last_B_1 = (kept_B_V < kept_B_V[:, -1:]).sum(-1, keepdim=True)
    return order_B_V.gather(-1, torch.minimum(ranks_B_1, last_B_1))[:, 0]
