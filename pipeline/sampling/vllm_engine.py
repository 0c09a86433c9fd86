"""The vLLM sampler: one engine inside the calling process, kept for a run, its weights replaced in place.

Several calls of ``sample`` may be in progress: their requests run side by side, so that the engine never drains between
two shards. A call that starts with an empty engine resets the prefix cache and adds its requests in order. So the
schedule, and with it every sum of floating-point numbers, follows from the call alone. What else is in progress moves
the schedule; with one thread on a CPU the kernels compute each sequence by itself, and the bits stay the same.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import LoraConfig, SamplingConfig
from pipeline.errors import ConfigError, EngineError, RondoError
from pipeline.model.checkpoint_files import Shapes, read_config, weight_shapes
from pipeline.model.policy import Precision, choose_context
from pipeline.model.sampler_copy import SAMPLED_TIED, is_tied
from pipeline.model.weight_pieces import CAN_SHARE_MEMORY, WantedWeights, WeightPiece
from pipeline.sampling.base import (
    Candidate,
    FinishReason,
    Sampling,
    SamplingRequest,
    check_lengths,
    check_sequences,
    finish,
    stop_tokens,
)
from pipeline.sampling.vllm_calls import Answer, Call, Turns, Work
from pipeline.sampling.vllm_lora import ServedAdapters
from pipeline.sampling.vllm_sleep import LentMemory
from pipeline.sampling.vllm_start import failing, forget_expert_kernels, reason, start_engine


class VllmSampler:
    """Samples with vLLM. ``environment.configure_environment`` must have been called in this process before.

    Args:
        directory: checkpoint with untied embeddings, as ``sampler_copy`` gives it.
        config: the recipe's sampling; its cache is that of all its GPUs together.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads; another number changes results in the last bits.
        seed: seed of the engine; candidates have seeds of their own.
        gpus: GPUs that the model is split over by tensor parallelism. More than one has not been tried yet.
        precision: of weights and computation. Of an update whose steps are small, weights in bfloat16 keep little; a
            trainer that computes with float32 is another policy by that much.
        sleeps: whether it may be asked to lend its GPU's memory.
        lora: the adapters that it serves beside the checkpoint's weights, if it serves any.

    Raises:
        ConfigError: the directory is no checkpoint, or the context does not fit the model.
        EngineError: the engine cannot start.
        UnsupportedModelError: vLLM's CPU attention has no kernel for heads of this width, or its model no
            place for one of the adapters.
    """

    def __init__(
        self,
        directory: Path,
        config: SamplingConfig,
        *,
        device: str = "cpu",
        threads: int = 1,
        seed: int = 0,
        gpus: int = 1,
        precision: Precision = "float32",
        sleeps: bool = False,
        lora: LoraConfig | None = None,
    ) -> None:
        self._context = choose_context(directory, config.context)
        self._stop = stop_tokens(directory)
        self._shapes = _untied_shapes(directory)
        self._calls: dict[int, Call] = {}
        self._begun = 0
        self._on_cpu = device == "cpu"
        self._precision, self._transfers = precision, gpus == 1 and CAN_SHARE_MEMORY and lora is None
        self._arrived: set[str] | None = None  # names of the new weights, while they come
        self._engine = start_engine(
            directory,
            config,
            context=self._context,
            shapes=self._shapes,
            device=device,
            threads=threads,
            seed=seed,
            gpus=gpus,
            precision=precision,
            sleeps=sleeps,
            transfers=self._transfers,
            lora=lora,
        )
        self._memory = LentMemory(self._engine)
        self._adapters = None if lora is None else ServedAdapters(self._engine, directory, lora)

    def sample(self, requests: Sequence[SamplingRequest], config: SamplingConfig) -> Sampling:
        """Samples as ``Sampler`` says."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        check_lengths(requests, config.max_tokens, self._context)
        keys = [(request, k) for request in requests for k in range(config.candidates)]
        work = [
            Work(
                list(request.token_ids),
                SamplingParams(
                    temperature=config.temperature,
                    top_p=config.top_p,
                    max_tokens=config.max_tokens,
                    seed=request.seed + k,
                    logprobs=0,
                    flat_logprobs=True,
                    stop_token_ids=sorted(self._stop),
                    detokenize=False,
                    output_kind=RequestOutputKind.DELTA,  # of the others none keeps to the stream interval
                ),
            )
            for request, k in keys
        ]
        answers = yield from self._run(work)
        return [
            Candidate(
                prompt_id=request.prompt_id,
                candidate=k,
                token_ids=answer.token_ids,
                logprobs=answer.logprobs,
                finish_reason=_finish_reason(answer.last),
                seed=request.seed + k,
            )
            for (request, k), answer in zip(keys, answers, strict=True)
        ]

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Scores as ``Sampler`` says.

        All tokens but the last are scored as a prompt, and the last as the only token that may be sampled:
        its raw log-probability is taken before that restriction. So a sequence may fill the whole context.
        """
        from vllm import SamplingParams

        check_sequences(sequences, self._context)
        work = [
            Work(
                [*prompt, *answer[:-1]],
                SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    logprobs=0,
                    prompt_logprobs=0,
                    flat_logprobs=True,
                    allowed_token_ids=[answer[-1]],
                    detokenize=False,
                ),
            )
            for prompt, answer in sequences
        ]
        scores = []
        for (prompt, answer), scored in zip(sequences, finish(self._run(work)), strict=True):
            # The first token of all has no log-probability, so the list is one shorter than the prompt.
            before = list(scored.last.prompt_logprobs.logprobs)[len(prompt) - 1 :] if len(answer) > 1 else []
            scores.append([*before, *scored.logprobs])
        return scores

    def load_weights(self, directory: Path) -> None:
        """Replaces the weights as ``Sampler`` says.

        What can be checked is checked first: a reload that fails leaves a dead engine.
        """
        self._check_may_change()
        try:
            shapes = _untied_shapes(directory)
        except ConfigError as error:
            raise EngineError(f"the sampler cannot take these weights: {error}") from error
        if shapes != self._shapes:
            raise EngineError(
                f"the weights of {directory} have other names or shapes than the engine's: start a new sampler"
            )
        self._memory.begin_weights()
        if self._adapters is not None:
            self._adapters.serve(None)
        try:
            self._prepare()
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        except Exception as error:
            raise EngineError(
                f"the weights of {directory} could not be loaded in place ({reason(error)}): "
                "the engine is lost, start a new sampler"
            ) from error
        self._stop = stop_tokens(directory)
        self._end_weights()

    def serve_adapter(self, directory: Path | None) -> None:
        """Serves an adapter as ``AdapterServer`` says, and nothing of the one before."""
        self._check_may_change()
        if self._adapters is None:
            raise EngineError("this sampler was started without adapters: start a new one")
        self._memory.wake()
        self._adapters.serve(directory)
        self._reset_cache()

    def wanted_weights(self) -> WantedWeights | None:
        """Says what it wants as ``WeightReceiver`` says; an engine of several processes knows no transfer of ours."""
        self._check_whole()
        if not self._transfers:
            return None
        model = self._engine.collective_rpc("get_model")[0]
        dtypes = {str(weight.dtype) for weight in model.parameters() if weight.is_floating_point()}
        # A weight that the engine keeps in another precision than its own is to come as the checkpoint has it.
        return WantedWeights(self._shapes, self._precision if dtypes == {f"torch.{self._precision}"} else None)

    def take_weights(self, piece: WeightPiece) -> None:
        """Takes a piece of new weights as ``WeightReceiver`` says."""
        if self._arrived is None:
            self._check_may_change()
            self._memory.begin_weights()
        with failing("take new weights out of the trainer's memory"):
            if self._arrived is None:
                self._arrived = set()
                self._prepare()
                self._engine.collective_rpc("start_weight_update")
            self._engine.collective_rpc("update_weights", kwargs={"update_info": {"piece": piece}})
        self._arrived |= {name for placed in piece.tensors for name in placed.names}

    def finish_weights(self, policy: str) -> None:
        """Ends the new weights as ``WeightReceiver`` says; vLLM's weight version is the policy's hash."""
        arrived = self._arrived or set()
        if lacking := self._shapes.keys() - arrived:
            raise EngineError(
                f"of the policy's weights {len(lacking)} have not come, such as '{min(lacking)}': start a new sampler"
            )
        with failing("take new weights out of the trainer's memory"):
            self._engine.collective_rpc("finish_weight_update")
            self._engine.set_weight_version(policy)
        self._arrived = None
        self._end_weights()

    def name_weights(self, policy: str) -> None:
        """Has vLLM's weight version be the policy's hash."""
        with failing("name its weights"):
            self._engine.set_weight_version(policy)

    def _end_weights(self) -> None:
        self._memory.end_weights()
        # New weights keep the prefix cache: long prompts would go on from the old ones' keys and values.
        self._reset_cache()

    def _prepare(self) -> None:
        if self._on_cpu:
            forget_expert_kernels(self._engine.collective_rpc("get_model")[0])

    def _check_may_change(self) -> None:
        self._check_whole()
        if self._calls:
            raise EngineError("the sampler cannot take new weights while it samples: take the turns that are left")

    def _check_whole(self) -> None:
        if self._arrived is not None:
            raise EngineError("the sampler has got a part of a policy's weights alone: start a new sampler")

    def sleep(self, *, keeps_weights: bool) -> None:
        """Lends the GPU's memory as ``Sleepable`` says. The base of adapters is kept: no policy brings it again.

        On a CPU vLLM lends nothing; weights count as dropped there, too.
        """
        self._check_whole()
        if self._calls:
            raise EngineError("the sampler cannot sleep while it samples: take the turns that are left")
        self._memory.lend(keeps_weights=keeps_weights or self._adapters is not None)

    def _run(self, work: Sequence[Work]) -> Turns:
        """Runs requests through the engine, beside those of other calls; the answers come in their order."""
        self._check_whole()
        self._memory.wake()
        if not self._calls:
            self._reset_cache()
        number, call = self._begun, Call([Answer() for _ in work])
        self._begun += 1
        self._calls[number] = call
        adapter = None if self._adapters is None else self._adapters.request
        try:
            for index, item in enumerate(work):
                prompt = {"type": "token", "prompt_token_ids": item.token_ids}
                self._engine.add_request(f"{number}-{index}", prompt, item.params, lora_request=adapter)
            while call.unfinished:
                for output in self._engine.step():
                    self._calls[int(output.request_id.partition("-")[0])].take(output)
                yield call.finished, call.tokens
        except RondoError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM failed while it sampled ({reason(error)}): start a new sampler") from error
        finally:
            del self._calls[number]
            left = [f"{number}-{index}" for index, answer in enumerate(call.answers) if answer.last is None]
            if left:
                self._engine.abort_request(left)
        return call.answers

    def _reset_cache(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise EngineError(
                "vLLM still holds requests of an earlier call, so no cache can be reset: start a new sampler"
            )


def _untied_shapes(directory: Path) -> Shapes:
    """Reads names and shapes of the weights; refuses tied embeddings: a reload would silently mix two policies."""
    config = read_config(directory)
    if is_tied(config) and str(config.get("model_type")) not in SAMPLED_TIED:
        raise EngineError(
            f"the checkpoint {directory} has tied embeddings, which do not survive a reload: "
            "pass what pipeline.model.sampler_copy makes of it"
        )
    return weight_shapes(directory)


def _finish_reason(output: Any) -> FinishReason:
    ended = output.outputs[0].finish_reason
    if ended not in ("stop", "length"):
        raise EngineError(f"vLLM gave up request {output.request_id} ({ended}): start a new sampler")
    return "stop" if ended == "stop" else "length"
