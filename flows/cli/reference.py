"""The two pages that are written from the code: ``make reference`` writes docs/recipes.md and docs/command-line.md."""

import collections.abc
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from flows.cli.main import app
from pipeline.judges import JudgeConfig
from pipeline.judges.registry import judges
from pipeline.recipe import Recipe, models_in

DOCS = Path(__file__).parents[2] / "docs"
_NOTICE = "<!-- Written from the code by `make reference`: change the code, and run it again. -->"
_RECIPES = f"""\
# Recipes

{_NOTICE}

A recipe is a YAML file. `rondo recipes` lists those that rondo brings along, `rondo init NAME` writes one for your own
model, prompts and judge, and `--set update.beta=0.2` changes a field from the command line. An unknown field, or a
value out of range, is answered with the field, the value and the remedy before anything starts. Of each field this page
gives the type, the default and the range; a field without a default is required.
"""
_COMMANDS = f"""\
# Command line

{_NOTICE}

`rondo --install-completion` teaches the shell to complete commands, options, runs and recipes. Wherever `RUN@ROUND` is
taken, `RUN` alone and `RUN@latest` mean its newest round; for `checkpoint` and `publish`, which take a policy, it is
the newest that passed its gate. Commands that read take `--format`: `table` and `markdown` show what people read;
`json`, `jsonl` and `csv` have all columns, under their names in the store.
"""
_BOUNDS = {
    "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "minLength": "length ≥",
    "maxLength": "length ≤", "minItems": "entries ≥", "maxItems": "entries ≤", "multipleOf": "multiple of",
}  # fmt: skip
_TYPES = {
    str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "empty", Any: "anything",
}  # fmt: skip
_TAGS = ("kind", "source", "mode", "form")
Sections = dict[type[BaseModel], str]


def recipes_page() -> str:
    """Writes the page of all fields of a recipe, a section for each part of it."""
    sections: Sections = {Recipe: "The recipe itself"}
    _collect(Recipe, "", sections)
    parts = [_section(model, title, sections) for model, title in sections.items()]
    return "\n".join([_RECIPES, *parts])


def commands_page() -> str:
    """Writes the page of all commands, in the order and under the titles of ``rondo --help``."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    panels: dict[str, list[TyperCommand]] = {}
    for command in group.commands.values():
        assert isinstance(command, TyperCommand)
        if not command.hidden:
            panels.setdefault(str(command.rich_help_panel), []).append(command)
    parts = [f"## {panel}\n\n" + "\n".join(map(_command, commands)) for panel, commands in panels.items()]
    return "\n".join([_COMMANDS, *parts])


def pages() -> dict[Path, str]:
    """Returns the pages, each with the file that it belongs to."""
    return {DOCS / "recipes.md": recipes_page(), DOCS / "command-line.md": commands_page()}


def _collect(model: type[BaseModel], path: str, sections: Sections) -> None:
    """Names the models below a model by the fields that lead to them; each once, where it is met first."""
    for name, field in model.model_fields.items():
        inner = [part for part in models_in(field.annotation) if part not in sections]
        for part in inner:
            place = f"{path}.{name}".strip(".")
            sections[part] = f"{place}: {tag}" if (tag := _tag(part)) else place
        for part in inner:
            _collect(part, sections[part].partition(":")[0], sections)


def _section(model: type[BaseModel], title: str, sections: Sections) -> str:
    about = " ".join((model.__doc__ or "").partition("\n\n")[0].split())
    properties = model.model_json_schema().get("properties", {})
    rows = [
        [f"`{name}`", _type(field.annotation, sections), _default(field), _range(properties[name]),
         field.description or ""]
        for name, field in model.model_fields.items()
    ]  # fmt: skip
    return f"## {title}\n\n{_escape(about)}\n\n" + _table(["field", "type", "default", "range", "meaning"], rows)


def _type(annotation: Any, sections: Sections) -> str:
    """Says a type in words; a part of the recipe is a link to its section."""
    if annotation in _TYPES:
        return _TYPES[annotation]
    if annotation is JudgeConfig:
        return " or ".join(_type(config, sections) for config in judges())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        title = sections[annotation]
        return f"[{title}](#{_anchor(title)})"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], sections)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument, sections) for argument in arguments))
    if origin is tuple:
        return f"list of {_type(arguments[0], sections)}"
    return "mapping" if origin is collections.abc.Mapping else "anything"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", ()):
        return "empty"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value, default=dict, ensure_ascii=False)}`"


def _range(schema: dict[str, Any]) -> str:
    kinds = (schema, *schema.get("anyOf", ()))
    limits = [f"{sign} {kind[name]:,.12g}" for kind in kinds for name, sign in _BOUNDS.items() if name in kind]
    examples = [f"such as `{value}`" for value in schema.get("examples", ())[:1]]
    return ", ".join(limits + examples)


def _tag(model: type[BaseModel]) -> str | None:
    """Returns the word by which a recipe chooses this model among several; None if there is no choice."""
    for name in _TAGS:
        field = model.model_fields.get(name)
        if field is not None and field.is_required() and typing.get_origin(field.annotation) is typing.Literal:
            return " or ".join(typing.get_args(field.annotation))
    return None


def _command(command: TyperCommand) -> str:
    arguments = [parameter for parameter in command.params if isinstance(parameter, TyperArgument)]
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    usage = " ".join(["rondo", str(command.name), *(argument.display_name_raw for argument in arguments)])
    rows = [_parameter(parameter) for parameter in shown if isinstance(parameter, TyperArgument | TyperOption)]
    table = _table(["argument or option", "value", "default", "meaning"], rows) if rows else ""
    about = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    return f"### {command.name}\n\n    {usage}\n\n{_escape(about)}\n\n{table}"


def _parameter(parameter: TyperArgument | TyperOption) -> list[str]:
    if isinstance(parameter, TyperArgument):
        names, value = [parameter.display_name_raw], ""
    else:
        names, value = [*parameter.opts, *parameter.secondary_opts], _value(parameter)
    default = "required" if parameter.required else _shown_default(parameter)
    variable = f"; or the variable {parameter.envvar}" if parameter.envvar else ""
    return [", ".join(f"`{name}`" for name in names), value, default, (parameter.help or "") + variable]


def _value(option: TyperOption) -> str:
    """Says what an option takes; a flag takes nothing."""
    if option.is_flag:
        return ""
    if option.metavar:
        return f"`{option.metavar}`"
    type_ = option.type_descriptor
    if type_.is_choice:
        return ", ".join(f"`{getattr(choice, 'value', choice)}`" for choice in type_.choices or ())
    return _TYPES.get(type_.annotation, "path")


def _shown_default(parameter: TyperArgument | TyperOption) -> str:
    value = getattr(parameter.default, "value", parameter.default)
    if value is None or value is False or value == "":
        return ""
    if isinstance(parameter, TyperOption) and value is True:
        return f"`{parameter.opts[0]}`"
    return f"`{value}`"


def _table(names: list[str], rows: list[list[str]]) -> str:
    """Writes a table in Markdown, without the columns that are empty in every row."""
    kept = [place for place in range(len(names)) if any(row[place] for row in rows)]
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(_escape(line[place]) for place in kept)} |\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _anchor(title: str) -> str:
    """Returns the anchor that GitHub gives a heading: lower case, with hyphens, without other marks."""
    kept = (letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return "".join(kept).replace(" ", "-")


def main() -> None:
    """Writes both pages."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
