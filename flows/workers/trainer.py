"""The trainer: makes the initial policy, updates it each round, and scores sequences under any of the policies.

The flow names these methods and holds no model, so torch is imported when a worker is constructed, not with this file.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from flows.workers.base import Worker, collective
from flows.workers.references import PolicyRef, PreferenceShard, Saved, Trained, TrialPrompt, UpdateInputs
from pipeline.config import PretrainedPolicy
from pipeline.data.regression_set import TEXT_SPLIT
from pipeline.errors import LostUpdateError
from pipeline.gate import TEXT
from pipeline.judges import Judgment
from pipeline.judges.support.tables import judgments_table
from pipeline.model.weight_pieces import WantedWeights, WeightPiece
from pipeline.records import EVALUATION_LOGPS, EVALUATION_TOKEN_LOGPS, to_table
from storage.log.manifest import FileRef

if TYPE_CHECKING:
    from flows.workers.round_update import RoundUpdate
    from pipeline.data.sources import Prompt

P = ParamSpec("P")
Result = TypeVar("Result")

PROBE_SEQUENCES = 8
PROBE_TOKENS = 8  # of a prompt; twice as many fit into every context


def at_work(method: Callable[P, Result]) -> Callable[P, Result]:
    """Has the model on its device while the method runs."""

    @wraps(method)
    def work(*arguments: P.args, **named: P.kwargs) -> Result:
        trainer: Any = arguments[0]
        with trainer._model.at_work():
            return method(*arguments, **named)

    return work


class TrainerWorker(Worker):
    """Updates and scores with one model; see ``flows/workers/trainer_model.py``."""

    def __init__(self, **common: Any) -> None:
        from flows.workers.trainer_model import TrainerModel

        super().__init__(**common)
        self.device = self.recipe.devices.trainer
        self._model = TrainerModel(self)
        self._update: RoundUpdate | None = None
        self._prompts: list[Prompt] | None = None  # checked, and not written yet
        self._table: pa.Table | None = None  # of them, if there was a tokenizer

    def prepare_policy(self) -> tuple[list[FileRef], dict[str, Any]]:
        """Makes the checkpoint of round 0: a warm start, trained once for its configuration, or a pretrained policy.

        Returns:
            Its files, and what its entry keeps: with the rest what the run keeps to, see `flows.registry.first_facts`.
        """
        from flows.workers.initial_policy import initial_policy

        files, report = initial_policy(self)
        return files, {"sampler_precision": self.recipe.sampler_precision, **report}

    def check_prompts(self) -> TrialPrompt:
        """Checks the prompts as far as they can be before there is a policy, see `flows.workers.prompts`."""
        from flows.workers.initial_policy import pretrained_source
        from flows.workers.prompts import check_source, trial_of

        policy = self.recipe.policy
        directory = pretrained_source(self, policy)[0] if isinstance(policy, PretrainedPolicy) else None
        self._prompts, self._table = check_source(self.recipe, directory, self._notice)
        return trial_of(self._prompts[0])

    def prepare_prompts(self, checkpoint: tuple[FileRef, ...]) -> FileRef:
        """Writes the prompts of the whole run, tokenised once and checked against the policy's context."""
        from flows.workers.prompts import run_prompts

        table = self._table
        if table is None:
            table = run_prompts(self.recipe, self.directory(checkpoint), None, self._notice, self._prompts)
        self._prompts = self._table = None
        return self.write(table, 0, "prompts")

    def _notice(self, notice: str) -> None:
        self.progress(notice=notice)

    @collective
    @at_work
    def probe(self, checkpoint: tuple[FileRef, ...], prompts: tuple[FileRef, ...]) -> FileRef:
        """Writes a probe for the initial policy. Any tokens serve: here each prompt's beginning, followed by itself."""
        from pipeline.packing.packing import TokenGroup

        self._model.load(self._model.directory(checkpoint))
        ids = [row[:PROBE_TOKENS] for row in self.table(prompts).slice(0, PROBE_SEQUENCES)["token_ids"].to_pylist()]
        groups = [TokenGroup(f"probe {row}", tokens, [tokens]) for row, tokens in enumerate(ids)]
        file = self._model.write_probe(0, groups, [logp for (logp,) in self._model.logps(groups)])
        self.empty_cache()
        return file

    def prepare_gate(self, checkpoint: tuple[FileRef, ...], round: int) -> FileRef:
        """Writes what the gate measures policies on, tokenised once and checked against the policy's context."""
        from flows.workers.prompts import gate_prompts

        return self.write(gate_prompts(self.recipe, self.directory(checkpoint)), round, "gate_prompts")

    @collective
    @at_work
    def score_text(self, policy: PolicyRef, prompts: tuple[FileRef, ...], round: int, stage: str) -> FileRef:
        """Writes a policy's mean log-probability of a token of each window of the gate's text, as judgments.

        A window's first token is given, so that the others have something before them.
        """
        from pipeline.packing.packing import TokenGroup

        rows = (
            self.table(prompts).filter(pc.field("split") == TEXT_SPLIT).select(["prompt_id", "token_ids"]).to_pylist()
        )
        self._model.use(policy)
        groups = [TokenGroup(row["prompt_id"], row["token_ids"][:1], [row["token_ids"][1:]]) for row in rows]
        logps = [logp for (logp,) in self._model.logps(groups)]
        self.empty_cache()
        judgments = [
            Judgment(
                prompt_id=row["prompt_id"], candidate=0, score=logp / (len(row["token_ids"]) - 1),
                judge=TEXT, judge_version="1", latency=0.0,
            )
            for row, logp in zip(rows, logps, strict=True)
        ]  # fmt: skip
        return self._model.write(judgments_table(judgments), round, stage)

    @collective
    @at_work
    def begin_update(self, inputs: UpdateInputs, round: int, seed: int) -> None:
        """Begins a round's update with the preferences that are there, and what an interrupted one had done."""
        from flows.workers.round_update import RoundUpdate

        self._update = None
        self._update = RoundUpdate(self._model, inputs, round, seed)

    @collective
    @at_work
    def add_preferences(self, shard: PreferenceShard) -> None:
        """Adds the preferences of the round's next shard, and takes the steps that are known with them.

        Raises:
            LostUpdateError: this worker has begun no update.
        """
        self._in_progress().add(shard)

    @collective
    @at_work
    def finish_update(self, name: str) -> Trained:
        """Takes the steps that are left. The new policy is in memory alone, under this name, until it is saved.

        Raises:
            LostUpdateError: this worker has begun no update.
        """
        trained = self._in_progress().finish(name)
        self.empty_cache()
        return trained

    @collective
    def save_update(self) -> Saved:
        """Writes the round's checkpoint, and what goes with it.

        Raises:
            LostUpdateError: this worker has begun no update, or does not hold its policy any more.
        """
        saved = self._in_progress().save()
        self._update = None  # with the optimizer's moments
        self.empty_cache()
        return saved

    def _in_progress(self) -> "RoundUpdate":
        if self._update is None:
            raise LostUpdateError("the trainer is asked to go on with an update that it has not begun: begin it again")
        return self._update

    @collective
    def begin_sending(self, policy: PolicyRef, wanted: WantedWeights) -> int:
        """Prepares to give the sampler the weights of a policy out of memory; returns the number of pieces.

        There are none if the model does not hold the policy any more, or if the sampler wants other tensors.
        """
        return self._model.begin_sending(policy, wanted)

    @collective
    def send_weights(self, number: int) -> WeightPiece | None:
        """Puts a piece of the weights into shared memory, where it stays until the one after the next is asked for.

        None if there is no memory for it, which it says.
        """
        return self._model.send(number)

    @collective
    def end_sending(self) -> None:
        """Gives the pieces up: the sampler has them."""
        self._model.end_sending()

    @collective
    @at_work
    def score(
        self,
        policy: PolicyRef,
        previous: PolicyRef,
        initial: PolicyRef,
        prompts: tuple[FileRef, ...],
        candidates: tuple[FileRef, ...],
        round: int,
        sampled: bool,
    ) -> FileRef:
        """Writes held-out completions' log-probabilities under a round's policy, the previous and the initial one.

        Two of them that are one policy are computed once, and those of the round's policy not at all if the sampler's
        serve.

        Args:
            sampled: whether the sampler's are taken for the policy that sampled, as they agree with this model's.
        """
        from flows.workers.preference_groups import prompt_token_ids
        from pipeline.packing.packing import TokenGroup

        columns = ["prompt_id", "candidate", "token_ids", "logprobs", "policy"]
        completions = self.table(candidates).select(columns).to_pylist()
        ids = prompt_token_ids(self.table(prompts), (row["prompt_id"] for row in completions))
        groups = [TokenGroup(row["prompt_id"], ids[row["prompt_id"]], [row["token_ids"]]) for row in completions]
        logps: dict[str, list[float]] = {}  # by the policy's hash
        tokens: dict[str, list[list[float]]] = {}
        if sampled and all(row["policy"] == policy.digest for row in completions):
            logps[policy.digest] = [sum(row["logprobs"]) for row in completions]
        for reference in (policy, previous, initial):
            if reference.digest not in logps:
                self._model.use(reference)
                sums, each = self._model.token_logps(groups)
                logps[reference.digest] = [logp for (logp,) in sums]
                tokens[reference.digest] = [of_answer for (of_answer,) in each]
        self.empty_cache()
        named = {"policy": policy, "previous": previous, "initial": initial}
        each_token: dict[str, list[Any]] = {}
        for name, reference in named.items() if self.recipe.update.token_logprobs else ():
            if reference.digest in tokens:
                each_token[name] = tokens[reference.digest]
            elif name == "policy":
                each_token[name] = [None] * len(completions)  # the sampler's, which lie beside the completions
            else:  # the same policy, in a round without an update: this column is never empty
                each_token[name] = [row["logprobs"] for row in completions]
        rows = [
            {
                "prompt_id": row["prompt_id"],
                "candidate": row["candidate"],
                "tokens": len(row["token_ids"]),
                **{name: logps[reference.digest][index] for name, reference in named.items()},
                **{f"{name}_tokens": found[index] for name, found in each_token.items()},
            }
            for index, row in enumerate(completions)
        ]
        schema = EVALUATION_TOKEN_LOGPS if each_token else EVALUATION_LOGPS
        return self._model.write(to_table(rows, schema), round, "eval_logps")
