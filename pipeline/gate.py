"""The gate after each round: what a recipe says of the regression set, of the test, and of a round that fails it."""

from math import log2
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Later
from pipeline.config.prompts import Prompts
from pipeline.config.update import UpdateConfig
from pipeline.judges import AnyJudge

TEXT, REWARD = "text", "reward"
"""Names of measures that are no judge of the gate: the policy's own text, and the held-out reward."""


class GateConfig(Config):
    """A gate after each round: a policy that can do less than the best one so far is not gone on with.

    The policy answers a regression set greedily, judges score the answers, tasks of lm-eval have examples and scores of
    their own, and a text that the policy did not write says how well it still models language. Each of these measures
    is compared with the best round so far, over the same prompts, examples or windows of text, by a one-sided sign-flip
    test. All tests of all ``rounds`` share ``error_rate`` equally
    (Bonferroni). A round after one that failed starts from the last that passed.
    """

    prompts: Prompts | None = Field(None, description="the prompts of the regression set; none if empty")
    count: int = Field(
        128,
        ge=1,
        le=4096,
        description="most prompts to take of them: of a generated corpus those that are held out, of a file or dataset "
        "those whose contents have the smallest hashes; and as many examples of each of gate.tasks",
    )
    judges: tuple[AnyJudge, ...] = Field(
        (), description="judges of the regression set, each a measure; each scores an answer by itself"
    )
    max_tokens: int | None = Field(
        None, ge=1, le=131_072, description="longest answer, in tokens; sampling.max_tokens if empty"
    )
    tasks: Annotated[tuple[str, ...], Later(())] = Field(
        (),
        description="tasks of the package lm-eval, each a measure: names that it knows, or YAML files of tasks of your "
        "own; their data have to be on this machine",
    )
    text: str | None = Field(
        None, min_length=1, description="a text file; the policy's mean log-probability of its tokens is a measure"
    )
    text_tokens: int = Field(16_384, ge=32, le=1_000_000, description="most tokens to read of the text")
    window: int = Field(
        128, ge=16, le=8192, description="tokens of one window of the text; each is scored by itself, but for its first"
    )
    tolerance: float = Field(
        0.0, ge=0, description="loss of a judge's, or a task's, mean score that is let pass, however certain it is"
    )
    text_tolerance: float = Field(
        0.05, ge=0, description="the same of the text, in nats per token; training always costs a little there"
    )
    error_rate: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="shared by all tests of all rounds: about the probability that a run whose policies are no worse "
        "than the best so far fails its gate at all",
    )
    on_failure: Literal["stop", "retry"] = Field(
        "stop",
        description="after a round that failed: end the run, or let the next round start from the last good policy "
        "with its own prompts and samples and the two factors below",
    )
    learning_rate_factor: float = Field(
        0.5, gt=0, le=1, description="factor of update.learning_rate for each failure in a row before a round"
    )
    beta_factor: float = Field(1.0, ge=1, le=100, description="factor of update.beta for each failure in a row")
    failures: int = Field(3, ge=1, le=1000, description="failures in a row after which the run ends all the same")
    patience: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="end the run, as finished, after so many rounds without a gain in held-out reward by the same test",
    )

    @property
    def guards(self) -> list[str]:
        """Names the measures in which no policy may lose."""
        text = [TEXT] if self.text is not None else []
        return [*(judge.label for judge in self.judges), *text, *self.task_names]

    @property
    def task_names(self) -> list[str]:
        """Names the measures that are tasks of lm-eval."""
        return [task_label(task) for task in self.tasks]

    @property
    def measures(self) -> list[str]:
        """Names all measures that are tested: with patience also the held-out reward, in which a gain is looked for."""
        return [*self.guards, *([REWARD] if self.patience is not None else [])]

    def level(self, rounds: int) -> float:
        """Returns the significance level of one test: its part of the error rate over so many rounds."""
        return self.error_rate / (rounds * len(self.measures))

    def tolerance_of(self, measure: str) -> float:
        """Returns the loss in a measure that is let pass."""
        return self.text_tolerance if measure == TEXT else self.tolerance

    def retried(self, update: UpdateConfig, failures: int) -> UpdateConfig:
        """Returns the update of a round that comes after so many failures in a row."""
        if not failures or self.on_failure == "stop":
            return update
        factors = {"learning_rate": self.learning_rate_factor, "beta": self.beta_factor}
        return update.model_copy(update={name: getattr(update, name) * by**failures for name, by in factors.items()})

    @model_validator(mode="after")
    def _measures_something(self) -> "GateConfig":
        if (self.prompts is None) != (not self.judges):
            raise ValueError(
                "gate.prompts and gate.judges go together, as the judges score the answers to the prompts: give both, "
                "or leave both out"
            )
        if not self.measures:
            raise ValueError("gate measures nothing: give it prompts with judges, a text, tasks, or patience")
        names = [*(judge.label for judge in self.judges), *self.task_names, TEXT, REWARD]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two measures of the gate are named '{twice}': give a judge, or a file, another name")
        if found := next((judge.label for judge in self.judges if judge.compares or not judge.comes_early), None):
            raise ValueError(
                f"gate.judges: '{found}' needs other answers, people or a policy of the run, and the gate asks of one "
                "answer at a time: choose a judge that scores an answer by itself"
            )
        return self


def is_task_file(task: str) -> bool:
    """Says whether a task of lm-eval is given as a file of one's own."""
    return task.endswith((".yaml", ".yml"))


def task_label(task: str) -> str:
    """Returns the name of the measure that a task of lm-eval is: that of its file without the ending."""
    return Path(task).stem if is_task_file(task) else task


def least_pairs(level: float) -> int:
    """Returns how many prompts a test at this level needs at least: were all worse, their signs would tell."""
    return int(-log2(level)) + (not log2(level).is_integer())
