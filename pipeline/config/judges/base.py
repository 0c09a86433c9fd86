"""What the configurations of all judges share."""

from typing import Any, ClassVar

from pydantic import Field

from pipeline.config.base import Config


class JudgeConfig(Config):
    """Base of the judges' configurations."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"name"})
    """Fields on which no score depends."""

    kind: str
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        examples=["helpfulness"],
        description="name in the tables; the kind where empty",
    )

    @property
    def label(self) -> str:
        """The judge's name in the tables."""
        return self.name or self.kind

    @property
    def states_uncertainty(self) -> bool:
        """Whether its scores have standard deviations, which soft labels need."""
        return False

    @property
    def compares(self) -> bool:
        """Whether its scores only order the candidates of one prompt, so that one answer alone has none."""
        return False

    @property
    def drifts(self) -> bool:
        """Whether equal versions may still score differently at another time, as an endpoint whose model is changed."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether each prompt must have a reference answer; of several judges as one, each of ``parts`` tells."""
        return False

    def parts(self) -> "tuple[JudgeConfig, ...]":
        """This judge, and those that it is made of."""
        return (self,)

    def scoring(self) -> dict[str, Any]:
        """All fields on which a score depends, as JSON: judges that differ in none of them score alike."""
        return self.model_dump(mode="json", exclude=set(self.OPERATIONAL))
