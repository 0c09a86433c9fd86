"""Switches of a chat template: what it writes with them, the ids of prompts, and the names that are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import FilePrompts
from pipeline.data.chat_template import check_switches, template_switches
from pipeline.data.prompts import load_prompts
from pipeline.data.sources import read_prompts
from pipeline.errors import ConfigError
from pipeline.records import content_id
from support.tiny import THINKING_TEMPLATE, tiny_tokenizer

THINKING = tiny_tokenizer(thinking=THINKING_TEMPLATE)
OFF = {"enable_thinking": False}
CONVERSATIONS = [[{"role": "user", "content": f"w{number}"}] for number in range(12)]


def prompts(directory: Path, kwargs: Mapping[str, Any] | None, contents: list[Any] = CONVERSATIONS) -> FilePrompts:
    path = directory / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": content}) + "\n" for content in contents))
    more = {} if kwargs is None else {"chat_template_kwargs": kwargs}
    return FilePrompts.model_validate({"source": "jsonl", "path": str(path), **more})


def test_a_switch_reaches_the_template(tmp_path: Path) -> None:
    """Words are tokens: 4 special ones, the roles and a colon (4 to 7), the marks (8 and 9), then w0 as 10."""
    thinks, answers = (
        {row["messages"][0]["content"]: row for row in load_prompts(config, 3, 0, THINKING).to_pylist()}
        for config in (prompts(tmp_path, None), prompts(tmp_path, OFF))
    )
    begin = [1, 4, 7, 11, 2, 1, 5, 7]
    assert (thinks["w1"]["token_ids"], answers["w1"]["token_ids"]) == (begin, [*begin, 8, 9])
    assert thinks["w1"]["text"] == "<s> user : w1 </s> <s> assistant : "
    assert answers["w1"]["text"] == "<s> user : w1 </s> <s> assistant : <think> </think> "


def test_ids_change_with_the_switches_and_only_with_them(tmp_path: Path) -> None:
    plain, empty, off, on = (
        read_prompts(prompts(tmp_path, kwargs)) for kwargs in (None, {}, OFF, {"enable_thinking": True})
    )
    assert [prompt.prompt_id for prompt in plain] == list(map(content_id, CONVERSATIONS))
    assert [prompt.prompt_id for prompt in empty] == [prompt.prompt_id for prompt in plain]
    assert off[0].prompt_id == content_id({"messages": CONVERSATIONS[0], "chat_template_kwargs": OFF})
    assert len({prompt.prompt_id for prompt in (*plain, *off, *on)}) == 3 * len(CONVERSATIONS)


def test_a_text_keeps_its_id_beside_conversations_with_switches(tmp_path: Path) -> None:
    found = read_prompts(prompts(tmp_path, OFF, ["w1 w2", *CONVERSATIONS]))
    assert found[0].prompt_id == content_id("w1 w2")


def test_the_same_prompts_are_held_out_whatever_the_switches(tmp_path: Path) -> None:
    """So a run with other switches, or one that goes on from its policy, trains on none of them."""
    held_out = []
    for kwargs in (None, OFF, {"enable_thinking": True}):
        rows = load_prompts(prompts(tmp_path, kwargs), 4, 0, THINKING).to_pylist()
        held_out.append([row["messages"] for row in rows if row["split"] == "evaluation"])
    assert held_out[0] == held_out[1] == held_out[2]
    expected = sorted(CONVERSATIONS, key=content_id)[:4]
    assert [[message["content"] for message in messages] for messages in held_out[0]] == [
        [message["content"] for message in messages] for messages in expected
    ]


def test_hashes_of_recipes_without_switches_stay(tmp_path: Path) -> None:
    assert "chat_template_kwargs" not in prompts(tmp_path, {}).hashed()
    assert prompts(tmp_path, OFF).hashed()["chat_template_kwargs"] == OFF


def test_a_name_that_the_template_does_not_read_is_refused(tmp_path: Path) -> None:
    message = "sets 'enable_thought', which the chat template of the policy does not read: it reads enable_thinking;"
    with pytest.raises(ConfigError, match=message):
        load_prompts(prompts(tmp_path, {**OFF, "enable_thought": 1}), 2, 0, THINKING)
    with pytest.raises(ConfigError, match="does not read: it has no switches"):
        load_prompts(prompts(tmp_path, OFF), 2, 0, tiny_tokenizer(chat_template=True))
    with pytest.raises(ConfigError, match="sets enable_thinking, but the prompts are texts"):
        read_prompts(prompts(tmp_path, OFF, ["w1", "w2", "w3"]))


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize", "tools", "bos_token"])
def test_a_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=rf"prompts.chat_template_kwargs sets '{name}', which rondo or the tok"):
        prompts(tmp_path, {name: True})


def test_switches_are_the_variables_that_a_recipe_may_set() -> None:
    tokenizer = tiny_tokenizer(chat_template=True)
    tokenizer.chat_template = (
        "{% if not mode is defined %}{% set mode = 'slow' %}{% endif %}{{ bos_token }}{% set own = namespace(n=0) %}"
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if own.n > limit %}{% break %}"
        "{% endif %}{% endfor %}{{ strftime_now('%Y') if dated }}{{ raise_exception('no') if tools }}"
    )
    assert template_switches(tokenizer, of="the policy") == ["dated", "limit", "mode"]
    tokenizer.chat_template = "{% if %}"
    with pytest.raises(ConfigError, match="the chat template of the policy cannot be read: line 1: "):
        check_switches(tokenizer, OFF, of="the policy")
