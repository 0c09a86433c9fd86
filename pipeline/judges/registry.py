"""The judges that there are: each registers itself, with its configuration, by the decorator ``judge``.

A recipe's field for a judge takes the configuration of any of them, chosen by ``kind``, whenever it was registered.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, TypeVar, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pipeline.errors import JudgeError
from pipeline.judges.base import Judge, JudgeConfig, Resources, ResponseCache

Made = TypeVar("Made", bound=type[Any])

_JUDGES: dict[type[JudgeConfig], Callable[[Any, Resources], Judge]] = {}


def judge(config: type[JudgeConfig]) -> Callable[[Made], Made]:
    """Registers the class that it decorates as the judge of this configuration, under each of its kinds.

    The class is called with the configuration and with `Resources`.
    """

    def register(made: Made) -> Made:
        taken = {kind: known for known in _JUDGES for kind in kinds(known)}
        for kind in kinds(config):
            if kind in taken:
                raise ValueError(f"{config.__name__} is of kind '{kind}', as {taken[kind].__name__} is: choose another")
        _JUDGES[config] = made
        return made

    return register


def judges() -> Mapping[type[JudgeConfig], Callable[[Any, Resources], Judge]]:
    """Returns all judges by their configurations."""
    return _JUDGES


def kinds(config: type[JudgeConfig]) -> tuple[str, ...]:
    """Lists what ``kind`` may be in a recipe for this configuration."""
    return get_args(config.model_fields["kind"].annotation)


def make_judge(
    config: JudgeConfig, *, device: str = "cpu", threads: int = 1, cache: ResponseCache | None = None
) -> Judge:
    """Loads the judge of this part of a recipe.

    Args:
        device, threads, cache: see `Resources`.

    Raises:
        JudgeError: it cannot be loaded.
    """
    return make(config, Resources(device=device, threads=threads, cache=cache))


def make(config: JudgeConfig, resources: Resources) -> Judge:
    """Loads a judge as `make_judge` does; for judges that are made of others."""
    try:
        return _JUDGES[type(config)](config, resources)
    except ImportError as error:
        message = f"the judge {config.kind} needs another package ({error}): pip install 'rondo[judges]'"
        raise JudgeError(message) from error


class OneOf:
    """Marks a field that holds the configuration of a judge, of those that ``takes`` is true of.

    The union is made when it is needed, so that judges that are registered later belong to it.
    """

    def __init__(self, takes: Callable[[type[JudgeConfig]], bool]) -> None:
        self._takes = takes

    def configs(self) -> tuple[type[JudgeConfig], ...]:
        """Lists the configurations that the field takes."""
        return tuple(config for config in _JUDGES if self._takes(config))

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: _union(self.configs()).validate_python(value),
            serialization=core_schema.simple_ser_schema("any"),
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(_union(self.configs()).core_schema)


@lru_cache
def _union(configs: tuple[type[JudgeConfig], ...]) -> TypeAdapter[Any]:
    union: Any = Annotated[Union[configs], Field(discriminator="kind")]  # noqa: UP007
    return TypeAdapter(union)


AnyJudge = Annotated[JudgeConfig, OneOf(lambda _config: True)]
MemberJudge = Annotated[JudgeConfig, OneOf(lambda config: config.MEMBER)]
