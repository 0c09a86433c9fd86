"""The form of a deployment on Prefect's page, and what its server checks before there is a flow run: a JSON schema.

The form shows the changes of a recipe that are asked for most. Every other field is taken as well, if the overrides are
given as JSON, and checked by its own type and limits. Of a run that exists only the sections in ``FREE`` can change.
Any other key is refused when the form is sent, and not later, by a flow run that a worker has started.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from flows.registry.resume import FREE
from flows.registry.shipped_files import shipped_recipes
from pipeline.recipe import Recipe
from storage.objects.layout import RUN_NAME

OF_ANY_RUN = ("mode", "devices.sampler", "devices.trainer", "devices.judge")
OF_A_NEW_RUN = (
    "seed", "sampling.prompts_per_round", "sampling.candidates", "sampling.temperature", "update.beta",
    "update.learning_rate",
)  # fmt: skip
_OTHERWISE = ("name", "description", "rounds")  # the form has a field of its own, or a change would mean nothing
MOST_ROUNDS = 100_000

Schema = dict[str, Any]


def form(recipe: str | None = None, run: str | None = None, root: str | None = None, *, exists: bool = False) -> Schema:
    """Returns the properties of a deployment's parameters.

    Args:
        recipe: name of the one recipe that the deployment is for; any if None.
        run: the one run that the deployment is for; any if None.
        root: where its runs are kept; anywhere if None.
        exists: whether that run exists, so that only what is in ``FREE`` can change.
    """
    names: Schema = {"enum": [run]} if run else {"pattern": f"^{RUN_NAME.pattern}$"}
    recipes: Schema = {"enum": [recipe]} if recipe else {"minLength": 1, "examples": [*shipped_recipes()]}
    roots: Schema = {"enum": [root]} if root else {"minLength": 1}
    properties: dict[str, Schema] = {
        "run": {"type": "string", "description": "name of the run; the first flow run creates it", **names},
        "rounds": {
            "type": "integer", "minimum": 1, "maximum": MOST_ROUNDS, "default": 1,
            "description": f"rounds to add (at least 1, at most {MOST_ROUNDS:,})",
        },
        "recipe": {"type": "string", "description": "what the run does: a recipe by its name", **recipes},
        "overrides": overrides(exists=exists),
        "root": {"type": "string", "description": "where runs are kept: a directory, or s3://, gs://, az://", **roots},
    }  # fmt: skip
    return {
        name: {"title": name.capitalize(), "position": position, **schema}
        for position, (name, schema) in enumerate(properties.items())
    }


def parameter_schema(given: Mapping[str, Any], *, exists: bool) -> Schema:
    """Returns the schema of the parameters of a deployment that is for one run.

    None is required, as the deployment has them all: a form that asks for one would open in place of a quick run.

    Args:
        given: the deployment's own parameters.
        exists: whether the run exists.
    """
    properties = form(given["recipe"], given["run"], given["root"], exists=exists)
    return {"title": "Parameters", "type": "object", "properties": properties, "required": [], "definitions": {}}


def overrides(*, exists: bool) -> Schema:
    """Returns the schema of the changes of a recipe that the form takes; see ``form``."""
    fields = recipe_fields()
    takes = {key: field for key, field in fields.items() if not exists or key.split(".")[0] in FREE}
    shown = OF_ANY_RUN if exists else (*OF_ANY_RUN, *OF_A_NEW_RUN)
    which = "the run exists, and of its recipe only these sections can change: " + ", ".join(FREE) if exists else (
        "fields of the recipe that are to differ; what is empty stays as the recipe says"
    )  # fmt: skip
    schema: Schema = {
        "type": "object",
        "default": {},
        "description": f"{which}. More of them as JSON, such as {{\"devices.cpu_threads\": 2}}",
        "properties": {
            key: {"title": key, "position": position, **takes[key]} for position, key in enumerate(shown)
        },
        # A form shows none of these.
        "if": {"type": "object"},
        "then": {"properties": {key: field for key, field in takes.items() if key not in shown}},
        "unevaluatedProperties": False,
    }  # fmt: skip
    if exists:  # the message of this check names what can change, in place of "unexpected"
        schema["propertyNames"] = {"pattern": rf"^({'|'.join(FREE)})(\.|$)"}
    return schema


def as_changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the overrides that a form was sent with, without the fields that it left empty."""
    shown = {*OF_ANY_RUN, *OF_A_NEW_RUN}
    return {key: value for key, value in given.items() if value is not None or key not in shown}


@cache
def recipe_fields() -> dict[str, Schema]:
    """Returns the schema of each field of a recipe by its dotted name; a union's fields take what any member takes."""
    whole = Recipe.model_json_schema()
    found: dict[str, list[Schema]] = {}
    for key, schema in _leaves(whole, whole.get("$defs", {}), "", ()):
        if key.split(".")[0] not in _OTHERWISE and schema not in found.setdefault(key, []):
            found[key].append(schema)
    return {key: kinds[0] if len(kinds) == 1 else {"anyOf": kinds} for key, kinds in sorted(found.items())}


def _leaves(
    node: Schema, definitions: Mapping[str, Schema], key: str, above: tuple[str, ...]
) -> Iterator[tuple[str, Schema]]:
    """Yields the fields below a node of pydantic's schema. A model within itself (a judge of judges) is any object."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in above:
            yield key, {"type": "object"}
            return
        node, above = {**definitions[name], **{k: v for k, v in node.items() if k == "description"}}, (*above, name)
    if "properties" in node:
        for name, inner in node["properties"].items():
            yield from _leaves(inner, definitions, f"{key}.{name}".strip("."), above)
        return
    kinds = node.get("anyOf") or node.get("oneOf")
    if kinds and any({"$ref", "oneOf"} & kind.keys() for kind in kinds):  # models, or a choice among some
        for kind in kinds:
            yield from _leaves(kind, definitions, key, above)
        return
    yield key, _without_references(node)


def _without_references(node: Schema) -> Schema:
    """Returns a field's own schema; if the elements of a list are not plain values, it says only that it is a list."""
    kept = {name: value for name, value in node.items() if name not in ("default", "examples", "title")}
    for inner in ("items", "additionalProperties"):
        if "$ref" in str(kept.get(inner, "")):
            del kept[inner]
    if "anyOf" in kept:
        kept["anyOf"] = [_without_references(kind) for kind in kept["anyOf"]]
    return kept
