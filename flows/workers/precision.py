"""How far sampler and trainer may be apart on the same weights, and what to say if they are further."""

from dataclasses import dataclass

from pipeline.config.sampling import BFLOAT16_TOLERANCE
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Agreement:
    """What a recipe lets two engines differ by, in nats per token, and what each of them computes in."""

    tolerance: float
    sampler: str
    trainer: str

    @classmethod
    def of(cls, recipe: Recipe) -> "Agreement":
        """Returns the agreement that a recipe asks for."""
        sampler = f"{recipe.sampling.engine} on {recipe.devices.sampler} in {recipe.sampler_precision}"
        return cls(recipe.handover_tolerance, sampler, f"on {recipe.devices.trainer} in {recipe.update.precision}")

    @property
    def exact(self) -> bool:
        """Says whether both compute in float32, so that only other weights, or another model, set them apart."""
        return "bfloat16" not in self.sampler + self.trainer

    def explain(self, per_token: float) -> str:
        """Ends an error's sentence: both sides with their precision, and what to do if that may be the cause."""
        sides = f"; the sampler is {self.sampler}, the trainer {self.trainer}"
        if self.exact:
            return sides
        usual = "more" if per_token > BFLOAT16_TOLERANCE else "no more"
        return (
            f"{sides}, and this is {usual} than bfloat16 explains in most models: set sampling.precision and "
            "update.precision to float32 to see whether the weights agree, or, if this model is so far off with the "
            f"right weights, sampling.handover_tolerance above {per_token:.2g}"
        )
