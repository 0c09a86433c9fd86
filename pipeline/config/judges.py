"""The judges of a recipe."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config


class JudgeConfig(Config):
    """Base of the judges' configurations."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name in the tables; the kind where empty"
    )


class VaderJudge(JudgeConfig):
    """Sentiment by the VADER lexicon: the compound score, from -1 to 1."""

    kind: Literal["vader"]


class ExactAnswerJudge(JudgeConfig):
    """1 where the answer equals the prompt's reference answer, else 0; surrounding white space is ignored."""

    kind: Literal["exact_answer"]
    after: str | None = Field(
        None, min_length=1, description="the answer is what follows the last of these marks; the whole text where empty"
    )


class GrammarJudge(JudgeConfig):
    """Share of an answer's clauses that the grammar of a generated corpus can produce, from 0 to 1."""

    kind: Literal["grammar"]
    corpus: Literal["film_reviews"] = Field("film_reviews", description="the corpus whose grammar is used")


class RewardModelJudge(JudgeConfig):
    """A sequence classifier with one output, applied to prompt and answer."""

    kind: Literal["reward_model"]
    path: str = Field(min_length=1, description="local directory, or id on the model hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    batch_size: int = Field(16, ge=1, le=4096, description="sequences per forward pass")


Judge = Annotated[VaderJudge | ExactAnswerJudge | GrammarJudge | RewardModelJudge, Field(discriminator="kind")]
