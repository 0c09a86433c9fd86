"""What every sampler must do. A test module inherits the class and gives the fixtures ``engine`` and ``weights``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import LoraConfig, SamplingConfig
from pipeline.errors import EngineError, PromptTooLongError
from pipeline.model.lora import Adapter, merge
from pipeline.model.policy import load_policy
from pipeline.model.sampler_copy import sampler_copy
from pipeline.sampling import Candidate, Sampler, SamplingRequest, base, finish, reported
from support.sent_weights import send
from support.tiny import tiny_llama

EOS = 2
CONTEXT = 256
# The engines compute in float32, the reference here in float64. Measured differences are below 3e-6 nats; a wrong
# weight, position or temperature shows up as 1e-2 and more.
TOLERANCE = 1e-4
SETTINGS = SamplingConfig(candidates=4, temperature=1.0, top_p=1.0, max_tokens=24)


@dataclass(frozen=True)
class Weights:
    """Two policies of one shape with untied embeddings, and two with tied ones."""

    first: Path
    second: Path
    tied: tuple[Path, Path]


def make_weights(directory: Path) -> Weights:
    def make(name: str, seed: int, *, tied: bool = False) -> Path:
        return tiny_llama(directory / name, seed=seed, tied=tied, context=CONTEXT, scale=0.2)

    return Weights(make("first", 0), make("second", 1), (make("c", 2, tied=True), make("d", 3, tied=True)))


def requests(count: int, length: int = 6, seed: int = 0) -> list[SamplingRequest]:
    """Random prompts; each begins with the same tokens, so that a prefix cache has something to share."""
    numbers = np.random.default_rng(seed)
    common = np.random.default_rng(99).integers(4, 64, length // 2).tolist()
    return [
        SamplingRequest(
            f"p{seed}-{index}", [*common, *numbers.integers(4, 64, length - len(common)).tolist()], 64 * index
        )
        for index in range(count)
    ]


def reference_logps(directory: Path, prompt: list[int], answer: list[int]) -> np.ndarray:
    """Log-probabilities [T, V] at the answer's positions: one plain forward pass without a cache, in float64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.inference_mode():
        logits_1_T_V = model(input_ids=torch.tensor([[*prompt, *answer]])).logits
    return logits_1_T_V[0, len(prompt) - 1 : -1].log_softmax(-1).numpy()


def assert_logprobs_of(directory: Path, prompts: list[SamplingRequest], candidates: list[Candidate]) -> None:
    by_id = {request.prompt_id: list(request.token_ids) for request in prompts}
    for candidate in candidates:
        logps_T_V = reference_logps(directory, by_id[candidate.prompt_id], candidate.token_ids)
        expected = np.take_along_axis(logps_T_V, np.array(candidate.token_ids)[:, None], 1)[:, 0]
        np.testing.assert_allclose(candidate.logprobs, expected, atol=TOLERANCE, rtol=0)


class SamplerContract:
    @pytest.fixture
    def sampler(self, engine: Sampler, weights: Weights) -> Sampler:
        engine.load_weights(weights.first)
        return engine

    def test_candidates_come_in_order_with_their_seeds(self, sampler: Sampler) -> None:
        # Prompts of different lengths, so that no engine can treat them as one block.
        prompts = [*requests(3, length=6), *requests(2, length=9, seed=1), *requests(2, length=6, seed=2)]
        candidates = finish(sampler.sample(prompts, SETTINGS))
        keys = [(candidate.prompt_id, candidate.candidate, candidate.seed) for candidate in candidates]
        assert keys == [(prompt.prompt_id, k, prompt.seed + k) for prompt in prompts for k in range(4)]
        assert finish(sampler.sample([], SETTINGS)) == []

    def test_an_answer_ends_with_its_end_of_sequence_token(self, sampler: Sampler) -> None:
        candidates = finish(sampler.sample(requests(16), SETTINGS))
        for candidate in candidates:
            assert len(candidate.token_ids) == len(candidate.logprobs)
            assert EOS not in candidate.token_ids[:-1]
            if candidate.finish_reason == "stop":
                assert candidate.token_ids[-1] == EOS
            else:
                assert len(candidate.token_ids) == SETTINGS.max_tokens
                assert candidate.token_ids[-1] != EOS
        assert {candidate.finish_reason for candidate in candidates} == {"stop", "length"}

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
    def test_logprobs_are_those_of_the_untempered_policy(
        self, sampler: Sampler, weights: Weights, temperature: float, top_p: float
    ) -> None:
        prompts = requests(3)
        candidates = finish(
            sampler.sample(prompts, SamplingConfig(candidates=2, temperature=temperature, top_p=top_p, max_tokens=16))
        )
        assert_logprobs_of(weights.first, prompts, candidates)

    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_tokens_follow_the_tempered_distribution(
        self, sampler: Sampler, weights: Weights, temperature: float
    ) -> None:
        draws = 4096
        prompt = requests(1)[0]
        # More than a recipe may ask for: so many that their shares can be told from others.
        config = SamplingConfig(temperature=temperature, max_tokens=1).model_copy(update={"candidates": draws})
        candidates = finish(sampler.sample([prompt], config))
        logps_V = reference_logps(weights.first, list(prompt.token_ids), [EOS])[0]
        expected = np.exp(logps_V / temperature) / np.exp(logps_V / temperature).sum() * draws
        counts = np.bincount([candidate.token_ids[0] for candidate in candidates], minlength=64)
        # Pearson's statistic over 64 tokens has mean 63 and standard deviation sqrt(126) = 11.2: 5 are allowed.
        assert float(((counts - expected) ** 2 / expected).sum()) < 63 + 5 * 11.2

    def test_the_nucleus_holds_every_sampled_token(self, sampler: Sampler, weights: Weights) -> None:
        prompts = requests(4)
        for candidate in finish(sampler.sample(prompts, SamplingConfig(candidates=4, top_p=0.5, max_tokens=16))):
            prompt = next(request for request in prompts if request.prompt_id == candidate.prompt_id)
            probs_T_V = np.exp(reference_logps(weights.first, list(prompt.token_ids), candidate.token_ids))
            for probs_V, token in zip(probs_T_V, candidate.token_ids, strict=True):
                more_probable = probs_V[probs_V > probs_V[token]].sum()
                # Slack for the float32 sums by which an engine finds the border of the nucleus.
                assert more_probable < 0.5 + TOLERANCE

    @pytest.mark.parametrize("temperature", [0.001, 0.0])
    def test_a_cold_sampler_takes_the_most_probable_token(
        self, sampler: Sampler, weights: Weights, temperature: float
    ) -> None:
        prompts = requests(3)
        config = SamplingConfig(max_tokens=8).served(temperature, 1.0).model_copy(update={"candidates": 2})
        for candidate in finish(sampler.sample(prompts, config)):
            prompt = next(request for request in prompts if request.prompt_id == candidate.prompt_id)
            logps_T_V = reference_logps(weights.first, list(prompt.token_ids), candidate.token_ids)
            assert candidate.token_ids == logps_T_V.argmax(-1).tolist()

    def test_seeds_decide_what_is_sampled(self, sampler: Sampler) -> None:
        ids = list(requests(1)[0].token_ids)
        same, other = SamplingRequest("same", ids, 5), SamplingRequest("other", ids, 500)
        answers = [candidate.token_ids for candidate in finish(sampler.sample([same, same, other], SETTINGS))]
        assert answers[:4] == answers[4:8]
        assert len({tuple(answer) for answer in answers}) == 8

    def test_an_answer_does_not_depend_on_its_neighbours(self, sampler: Sampler) -> None:
        prompts = requests(12)
        together = finish(sampler.sample(prompts, SETTINGS))
        alone = finish(sampler.sample(prompts[5:6], SETTINGS))
        for one, other in zip(alone, together[20:24], strict=True):
            assert one.token_ids == other.token_ids
            # A matrix product of another height may add in another order: a few units in the last place of float32.
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=0)

    def test_the_same_call_gives_the_same_bits(self, sampler: Sampler, weights: Weights) -> None:
        # Long enough to fill blocks of a prefix cache, and more prompt tokens than one step of an engine takes.
        prompts = requests(8, length=150)
        first = finish(sampler.sample(prompts, SETTINGS))
        finish(sampler.sample(requests(5, length=140, seed=3), SETTINGS))
        assert finish(sampler.sample(prompts, SETTINGS)) == first
        sampler.load_weights(weights.second)
        assert finish(sampler.sample(prompts, SETTINGS)) != first
        sampler.load_weights(weights.first)
        assert finish(sampler.sample(prompts, SETTINGS)) == first

    def test_scores_are_the_policys(self, sampler: Sampler, weights: Weights) -> None:
        prompts, answers = requests(3), ([5, 6, EOS], [7], [8] * 9)
        sequences = [(list(prompt.token_ids), answer) for prompt, answer in zip(prompts, answers, strict=True)]
        # The longest sequence that the model can read at all.
        sequences.append(([9, 10], [11 + index % 40 for index in range(CONTEXT - 2)]))
        for (prompt, answer), scored in zip(sequences, sampler.score(sequences), strict=True):
            logps_T_V = reference_logps(weights.first, prompt, answer)
            np.testing.assert_allclose(scored, logps_T_V[range(len(answer)), answer], atol=TOLERANCE, rtol=0)
        assert sampler.score(sequences) == sampler.score(sequences)

    def test_new_weights_leave_nothing_of_the_old(self, sampler: Sampler, weights: Weights) -> None:
        prompts = requests(2, length=150)
        finish(sampler.sample(prompts, SETTINGS))
        sampler.load_weights(weights.second)
        assert_logprobs_of(weights.second, prompts, finish(sampler.sample(prompts, SETTINGS)))
        prompt, answer = list(prompts[0].token_ids), [5, 6, 7]
        scored = sampler.score([(prompt, answer)])[0]
        new, old = (
            reference_logps(source, prompt, answer)[range(3), answer] for source in (weights.second, weights.first)
        )
        np.testing.assert_allclose(scored, new, atol=TOLERANCE, rtol=0)
        assert np.abs(new - old).min() > 100 * TOLERANCE

    def test_tied_embeddings_reload_through_an_untied_copy(
        self, sampler: Sampler, weights: Weights, tmp_path: Path
    ) -> None:
        prompts = requests(2)
        for tied in weights.tied:
            sampler.load_weights(sampler_copy(tied, tmp_path / "copy"))
            assert_logprobs_of(tied, prompts, finish(sampler.sample(prompts, SETTINGS)))

    def test_weights_out_of_memory_are_those_of_the_checkpoint(
        self, sampler: Sampler, weights: Weights, tmp_path: Path
    ) -> None:
        """With heads of their own and tied ones, twice in turn; the same bits as if the checkpoint had been read."""
        prompts = requests(4, length=150)
        for directory in (weights.second, *weights.tied, weights.first):
            assert send(sampler, directory) > 2
            sent = finish(sampler.sample(prompts, SETTINGS))
            assert_logprobs_of(directory, prompts, sent)
            sampler.load_weights(sampler_copy(directory, tmp_path / "copy"))
            assert finish(sampler.sample(prompts, SETTINGS)) == sent

    def test_an_adapter_out_of_memory_is_the_merged_one(
        self, sampler: Sampler, weights: Weights, tmp_path: Path
    ) -> None:
        """An adapter (seed 5) that changes log-probabilities by far more than the tolerance."""
        model, tokenizer = load_policy(weights.first, device="cpu")
        adapter = Adapter(model, LoraConfig(rank=4, alpha=8), seed=5)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.2)
        adapter.save(tokenizer, tmp_path / "adapter")
        send(sampler, weights.first, adapter=tmp_path / "adapter")
        prompt, answer = list(requests(1)[0].token_ids), [5, 6, 7]
        scored = sampler.score([(prompt, answer)])[0]
        merged = merge(weights.first, tmp_path / "adapter", tmp_path / "merged")
        new, old = (reference_logps(source, prompt, answer)[range(3), answer] for source in (merged, weights.first))
        np.testing.assert_allclose(scored, new, atol=TOLERANCE, rtol=0)
        assert np.abs(new - old).max() > 100 * TOLERANCE

    def test_no_weights_come_while_it_samples(self, sampler: Sampler, weights: Weights) -> None:
        sampling = sampler.sample(requests(2), SETTINGS)
        next(sampling)
        with pytest.raises(EngineError, match="cannot take new weights while it samples"):
            send(sampler, weights.second)
        before = finish(sampling)
        assert_logprobs_of(weights.first, requests(2), before)

    def test_weights_that_do_not_fit_are_refused_and_change_nothing(
        self, sampler: Sampler, weights: Weights, tmp_path: Path
    ) -> None:
        prompts = requests(2)
        before = finish(sampler.sample(prompts, SETTINGS))
        other_shape = tiny_llama(tmp_path / "other", vocab=80, context=CONTEXT)
        damaged = tiny_llama(tmp_path / "damaged", seed=1, context=CONTEXT)
        content = (damaged / "model.safetensors").read_bytes()
        (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
        for directory in (other_shape, damaged, tmp_path / "nowhere"):
            with pytest.raises(EngineError, match=str(directory)):
                sampler.load_weights(directory)
        assert finish(sampler.sample(prompts, SETTINGS)) == before

    def test_what_does_not_fit_the_context_is_named(self, sampler: Sampler) -> None:
        fits, too_long = requests(1, length=CONTEXT - 24), requests(1, length=CONTEXT - 23, seed=7)
        assert len(finish(sampler.sample(fits, SETTINGS))) == 4
        with pytest.raises(PromptTooLongError, match=r"p7-0 has 233 tokens.*max_tokens 24.*256"):
            finish(sampler.sample([*fits, *too_long], SETTINGS))
        with pytest.raises(PromptTooLongError, match=r"sequence 0 has 257 tokens.*256"):
            sampler.score([([4] * 200, [5] * 57)])

    def test_progress_rises_to_the_totals(self, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "PROGRESS_SECONDS", 0.0)
        seen: list[tuple[int, int]] = []
        candidates = finish(reported(sampler.sample(requests(8), SETTINGS), lambda *metrics: seen.append(metrics)))
        assert len(seen) > SETTINGS.max_tokens // 2
        assert seen == sorted(seen)
        assert seen[-1] == (32, sum(len(candidate.token_ids) for candidate in candidates))

    def test_a_call_that_is_broken_off_leaves_nothing_behind(
        self, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(finished: int, tokens: int) -> None:
            if tokens > 50:
                raise KeyboardInterrupt

        prompts = requests(4)
        whole = finish(sampler.sample(prompts, SETTINGS))
        monkeypatch.setattr(base, "PROGRESS_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            finish(reported(sampler.sample(prompts, SETTINGS), stop))
        assert finish(sampler.sample(prompts, SETTINGS)) == whole

    def test_calls_in_progress_together_give_the_bits_of_each_alone(self, sampler: Sampler) -> None:
        """One thread on a CPU: shards of other lengths, begun at other times, and one that is given up in between."""
        shards = [requests(5, length=length, seed=length) for length in (6, 140, 9)]
        alone = [finish(sampler.sample(shard, SETTINGS)) for shard in shards]
        first, second, third = (sampler.sample(shard, SETTINGS) for shard in shards)
        given_up = sampler.sample(requests(7, length=30, seed=1), SETTINGS)
        for turn, sampling in ((3, first), (2, given_up), (4, second)):
            for _ in range(turn):
                next(sampling)
        given_up.close()
        together = [finish(third), finish(first), finish(second)]
        assert together == [alone[2], alone[0], alone[1]]

    def test_new_weights_wait_for_what_is_in_progress(self, sampler: Sampler, weights: Weights) -> None:
        whole = finish(sampler.sample(requests(4), SETTINGS))
        sampling = sampler.sample(requests(4), SETTINGS)
        next(sampling)
        with pytest.raises(EngineError, match="while it samples"):
            sampler.load_weights(weights.second)
        assert finish(sampling) == whole
