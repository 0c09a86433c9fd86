"""The tasks of lm-eval that a gate measures a policy on: loaded, answered through a sampler, and scored one by one.

The package (``lm-eval``, EleutherAI) makes the requests and computes the scores. Here are only the choice of examples,
and what is asked of a task so that its scores can be paired.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import Any

from pipeline.config import SamplingConfig
from pipeline.data.special_tokens import Tokenizer
from pipeline.errors import ConfigError
from pipeline.gate import is_task_file, task_label
from pipeline.judges import Judgment
from pipeline.records import content_id
from pipeline.sampling import Sampler

_FEWSHOT_SEED = 1234
"""lm-eval's own, so that examples before a question are those of its command line."""
_DUMMIES = {"loglikelihood": (-1.0, False), "generate_until": ""}
"""Answers with which a task is tried before any policy answers, by the type of request."""


@dataclass(frozen=True)
class GateTask:
    """A task of lm-eval with its requests made.

    Attributes:
        label: name of the measure.
        task: lm-eval's object.
        metric: the score that is taken: the first of the task's.
        sign: -1 if less is better in it.
        ids: of its examples, in their order.
        version: hash of all that scores depend on beside the policy.
    """

    label: str
    task: Any
    metric: str
    sign: float
    ids: Sequence[str]
    version: str

    def score(self, sampler: Sampler, tokenizer: Tokenizer, settings: SamplingConfig) -> list[Judgment]:
        """Has a policy answer the examples, and returns the score of each.

        Args:
            settings: how answers are sampled; a task that asks for fewer tokens gets fewer.

        Raises:
            PromptTooLongError: an example does not fit the context.
            ConfigError: the task gives an example no score.
        """
        from pipeline.evaluation.lm_eval_policy import SamplerLM

        answered = SamplerLM(sampler, tokenizer, settings)
        kind = self.task.instances[0].request_type
        found = getattr(answered, kind)(self.task.instances, disable_tqdm=True)
        scores = _scores(self.task, found, self.metric, self.label)
        return [
            Judgment(
                prompt_id=prompt_id, candidate=0, score=self.sign * score, judge=self.label, judge_version=self.version,
                latency=0.0,
            )
            for prompt_id, score in zip(self.ids, scores, strict=True)
        ]  # fmt: skip


def check_package() -> None:
    """Refuses tasks if lm-eval is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "gate.tasks are tasks of the package lm-eval, which is not installed: install rondo[lm-eval], or leave "
            "gate.tasks out"
        )


def load_tasks(names: Sequence[str], count: int, least: int) -> list[GateTask]:
    """Loads tasks with their data, makes the requests of at most ``count`` examples of each, and tries the scoring.

    The examples are those whose contents have the smallest hashes.

    Args:
        least: examples that a test takes to tell a loss.

    Raises:
        ConfigError: the package or the data are missing, there are too few of them, or a task has no score of an
            example that can be paired.
    """
    if not names:
        return []
    check_package()
    with contextlib.redirect_stderr(io.StringIO()):  # where lm-eval and datasets draw bars of progress
        manager = importlib.import_module("lm_eval.tasks").TaskManager
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # The index of all tasks that the package brings takes a minute or more, and files need none.
        manager = manager(include_defaults=not all(map(is_task_file, names)))
        tasks = [_load(manager, name, count) for name in names]
    if few := next((task for task in tasks if len(task.ids) < least), None):
        raise ConfigError(
            f"gate.tasks: '{few.label}' has {len(few.ids)} examples, and the gate takes at least {least} to tell a "
            "loss: choose another task, or raise gate.error_rate"
        )
    return tasks


def _load(manager: Any, name: str, count: int) -> GateTask:
    label = task_label(name)
    try:
        loaded = manager.load([name])
        if loaded["groups"] or len(loaded["tasks"]) != 1:
            names = ", ".join(sorted(loaded["tasks"]))
            raise ConfigError(f"gate.tasks: '{name}' is a group of tasks: name those that are meant, of {names}")
        (task,) = loaded["tasks"].values()
        task.set_fewshot_seed(_FEWSHOT_SEED)
        documents = [json.dumps(document, sort_keys=True, default=str) for document in task.eval_docs]
        chosen = sorted(range(len(documents)), key=lambda place: (content_id(documents[place]), place))[:count]
        task.build_all_requests(samples=sorted(chosen))
    except ConfigError:
        raise
    except Exception as error:  # whatever lm-eval, a task's own code or the data's reader may raise
        raise ConfigError(
            f"gate.tasks: lm-eval cannot load '{name}' with its data, which have to be on this machine: "
            f"{type(error).__name__}: {error}"
        ) from error
    metric, sign = _metric(task, label)
    own = [documents[place] for place in sorted(chosen)]
    asked = [json.dumps(request.args, sort_keys=True, default=str) for request in task.instances]
    return GateTask(
        label, task, metric, sign,
        ids=[content_id([place, document]) for place, document in enumerate(own)],
        version=content_id([version("lm_eval"), str(task.VERSION), metric, own, asked]),
    )  # fmt: skip


def _metric(task: Any, label: str) -> tuple[str, float]:
    """Returns the first of a task's metrics and its sign, tried on answers that say nothing.

    Raises:
        ConfigError: the task's requests or scores are of a kind that the gate cannot pair.
    """
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
        raise ConfigError(
            f"gate.tasks: '{label}' is of lm-eval's type {task.OUTPUT_TYPE}, and the gate takes multiple_choice and "
            "generate_until: choose another task"
        )
    metric, higher = next(iter(task.higher_is_better().items()))
    if task.OUTPUT_TYPE == "multiple_choice" and metric == "exact_match":
        raise ConfigError(
            f"gate.tasks: the first metric of '{label}' asks whether a choice is the likeliest of all texts, which the "
            "gate does not compute: put acc first"
        )
    _scores(task, [_DUMMIES[task.instances[0].request_type]] * len(task.instances), metric, label)
    return metric, 1.0 if higher else -1.0


def _scores(task: Any, answers: Sequence[Any], metric: str, label: str) -> list[float]:
    """Returns the metric of each example by lm-eval's own filters, of which the first counts, and its own scoring."""
    for request, answer in zip(task.instances, answers, strict=True):
        request.resps, request.filtered_resps = [answer], {}
    task.apply_filters()
    name = next(iter(task.instances[0].filtered_resps))
    scores = []
    for _, group in groupby(task.instances, lambda request: request.doc_id):
        own = list(group)
        found = task.process_results(own[0].doc, [request.filtered_resps[name] for request in own]).get(metric)
        if not isinstance(found, int | float):
            raise ConfigError(
                f"gate.tasks: '{label}' gives an example no number as its {metric}, but {found!r:.60}, which cannot be "
                "compared example by example: choose another task, or put another metric first in its file"
            )
        scores.append(float(found))
    return scores
