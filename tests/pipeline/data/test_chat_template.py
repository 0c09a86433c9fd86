"""Conversations and chat templates: what one refuses, and what one would leave out without a word."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import FilePrompts
from pipeline.data.chat_template import check_judged
from pipeline.data.conversations import messages_of, prompt_content, stored_messages, written_out
from pipeline.data.prompts import load_prompts
from pipeline.data.sources import read_prompts
from pipeline.errors import DataError
from support.tiny import tiny_tokenizer

Messages = list[dict[str, Any]]
TOOLS = (
    "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %} w1 {{ call['function']['arguments'] | tojson }}{% endfor %} </s> "
    "{% endfor %}{% if add_generation_prompt %}<s> assistant : {% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}<s> {{ m['content'] }} </s> {% endfor %}"
)
QUIET = "{% for m in messages if m['role'] != 'system' %}<s> {{ m['content'] }} </s> {% endfor %}"


def said(role: str, content: str | None = "w1", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(arguments: Any) -> Messages:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return [said("user"), said("assistant", None, tool_calls=[call]), said("tool", "w2")]


def tokenizer_with(template: str) -> Any:
    tokenizer = tiny_tokenizer(chat_template=True)
    tokenizer.chat_template = template
    return tokenizer


def jsonl(directory: Path, *conversations: Messages) -> FilePrompts:
    path = directory / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in conversations))
    return FilePrompts(source="jsonl", path=str(path))


def test_tool_calls_reach_the_template_and_the_hash(tmp_path: Path) -> None:
    first, second = called({"x": 1}), called({"x": 2})
    config = jsonl(tmp_path, first, second, [said("user", "w9")])
    tokenizer = tokenizer_with(TOOLS)
    rows = {row["text"]: row for row in load_prompts(config, 1, 0, tokenizer).to_pylist()}
    assert len({row["prompt_id"] for row in rows.values()}) == 3
    for messages in (first, second):
        row = rows[tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)]
        assert messages_of(row["messages"]) == messages
        assert row["token_ids"] == tokenizer(row["text"], add_special_tokens=False).input_ids


def test_arrow_pads_with_nulls_and_the_prompt_is_the_same(tmp_path: Path) -> None:
    conversations = [called({"x": 1}), called({"y": "w3"}), [said("user", "w9", name=None)]]
    pq.write_table(pa.Table.from_pylist([{"prompt": messages} for messages in conversations]), tmp_path / "p.parquet")
    parquet = read_prompts(FilePrompts(source="parquet", path=str(tmp_path / "p.parquet")))
    lines = read_prompts(jsonl(tmp_path, *conversations))
    assert [prompt.content for prompt in parquet] == [prompt.content for prompt in lines]
    assert lines[2].content == [said("user", "w9")]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (TOOLS, [said("user", name="w3")], "does not use the field 'name' of message 1, of role 'user'"),
        (None, called({"x": 1}), "does not use the field 'tool_calls' of message 2, of role 'assistant'"),
        (QUIET, [said("system", "w2"), said("user")], "does not use message 1, of role 'system'"),
        (STRICT, [said("system"), said("user")], "refuses message 1, of role 'system': no system role here"),
        (STRICT, [said("user"), said("user")], "refuses message 2, of role 'user': roles must alternate"),
        (STRICT, [said("user"), said("assistant"), said("tool")], "refuses message 3, of role 'tool': roles must"),
        ("{{ messages[0].content.no.such }}", [said("user")], "refuses message 1, of role 'user': .*no"),
        ("{{ 1 / 0 }}", [said("user")], "refuses message 1, of role 'user': division by zero"),
    ],
)
def test_what_a_template_refuses_or_leaves_out(
    tmp_path: Path, template: str | None, messages: Messages, message: str
) -> None:
    tokenizer = tokenizer_with(template) if template else tiny_tokenizer(chat_template=True)
    path = Path(jsonl(tmp_path, messages, [said("user", "w7")]).path)
    path.write_text(f"\n\n{path.read_text()}")  # rows of a JSONL file are its lines, empty ones too
    config = FilePrompts(source="jsonl", path=str(path))
    with pytest.raises(DataError, match=rf"^row 3 of jsonl:p.jsonl, column 'prompt': the chat template.*{message}"):
        load_prompts(config, 1, 0, tokenizer)


def test_a_reward_model_refuses_with_the_row(tmp_path: Path) -> None:
    config = jsonl(tmp_path, [said("user")], [said("user", "w2"), said("user", "w3")])
    tokenizer = tokenizer_with(STRICT)
    message = r"row 2 of jsonl:p.jsonl, .* of the reward model 'rm' refuses message 2, of role 'user': roles must"
    with pytest.raises(DataError, match=message):
        check_judged(tokenizer, read_prompts(config), of="the reward model 'rm'")
    check_judged(tokenizer, read_prompts(config)[:1], of="the reward model 'rm'")
    with pytest.raises(DataError, match=r"row 1 of .*: a conversation, and the reward model 'rm' has no chat template"):
        check_judged(tiny_tokenizer(), read_prompts(config), of="the reward model 'rm'")


def test_messages_survive_their_table_and_are_written_out() -> None:
    messages = prompt_content(called('{"x": 1}'), "here", padded=False)
    assert isinstance(messages, list)
    assert messages_of(stored_messages(messages)) == messages
    assert messages_of([said("user")]) == [said("user")]  # version 1 of the table
    assert '[assistant]\ntool_calls: [{"type": "function"' in written_out(messages)
    with pytest.raises(DataError, match="a field that JSON cannot hold"):
        prompt_content([said("user", more=float("nan"))], "here", padded=False)
