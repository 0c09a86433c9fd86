"""Where prompts come from."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from pipeline.config.base import Config, Corpus, Later

RESERVED_KEYWORDS = frozenset({
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "raise_exception", "strftime_now", "bos_token", "eos_token",
    "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "additional_special_tokens",
})  # fmt: skip
"""What a chat template is given by rondo and by the tokenizer, so that no recipe can set it."""


def _no_reserved_names(keywords: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if reserved := sorted(RESERVED_KEYWORDS & keywords.keys()):
        raise ValueError(
            f"prompts.chat_template_kwargs sets '{reserved[0]}', which rondo or the tokenizer gives every chat "
            "template: leave it out"
        )
    return keywords


MaxTokens = Annotated[
    int | None,
    Field(ge=1, description="longest prompt to take, in tokens; longer ones are left out; if empty, they stop the run"),
]
Column = Annotated[
    str,
    Field(
        description="column with a text, or a list of messages: role, content, and what else the chat template writes"
    ),
]
ReferenceColumn = Annotated[
    str | None,
    Field(
        description="column with the right answer, a text or a number, for judges that need one; after a point, a "
        "field of it, as reward_model.ground_truth"
    ),
]
ReadSpecialTokens = Annotated[
    bool,
    Field(
        description="whether special tokens that are spelled in prompts, such as <|im_end|>, are read as control "
        "tokens, as texts with a template of their own need it; otherwise they are ordinary text"
    ),
]
ChatTemplateKwargs = Annotated[
    Mapping[str, JsonValue],
    AfterValidator(_no_reserved_names),
    Later({}),
    Field(
        description="switches of the policy's chat template, such as enable_thinking: false; each must be one that the "
        "template reads, and they belong to a conversation's id"
    ),
]


class GeneratedPrompts(Config):
    """Prompts from a corpus that rondo generates; warm start, training and evaluation never share one."""

    source: Literal["generated"]
    corpus: Corpus = Field(
        description="the corpus whose openings (film_reviews), problems (additions), or conversations that ask for a "
        "JSON object (json_objects) or set limits to an answer (instructions) are the prompts"
    )
    train: int = Field(4096, ge=1, le=10_000_000, description="training prompts to generate")
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=dict)


class FilePrompts(Config):
    """Prompts from a JSONL or Parquet file with a column of texts or of conversations."""

    source: Literal["jsonl", "parquet"]
    path: str = Field(min_length=1, description="the file")
    column: Column = "prompt"
    reference_column: ReferenceColumn = None
    max_tokens: MaxTokens = None
    read_special_tokens: ReadSpecialTokens = False
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=dict)


class DatasetPrompts(Config):
    """Prompts from a dataset by name, or from a local directory in the hub's format, read by the datasets library."""

    source: Literal["datasets"]
    name: str = Field(min_length=1, description="name on the data hub, or a local directory")
    subset: str | None = Field(None, description="configuration of the dataset, if it has several")
    split: str = Field("train", min_length=1, description="split to read, or a slice of it, such as train[:1000]")
    column: Column = "prompt"
    reference_column: ReferenceColumn = None
    max_tokens: MaxTokens = None
    read_special_tokens: ReadSpecialTokens = False
    chat_template_kwargs: ChatTemplateKwargs = Field(default_factory=dict)


Prompts = Annotated[GeneratedPrompts | FilePrompts | DatasetPrompts, Field(discriminator="source")]
