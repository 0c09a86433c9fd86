"""Where prompts come from."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Config, Corpus

MaxTokens = Annotated[
    int | None,
    Field(ge=1, description="longest prompt to take, in tokens; longer ones are left out; if empty, they stop the run"),
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


class GeneratedPrompts(Config):
    """Prompts from a corpus that rondo generates; warm start, training and evaluation never share one."""

    source: Literal["generated"]
    corpus: Corpus = Field(
        description="the corpus whose openings (film_reviews), problems (additions), or conversations that ask for a "
        "JSON object (json_objects) or set limits to an answer (instructions) are the prompts"
    )
    train: int = Field(4096, ge=1, le=10_000_000, description="training prompts to generate")


class FilePrompts(Config):
    """Prompts from a JSONL or Parquet file with a column of texts or of conversations."""

    source: Literal["jsonl", "parquet"]
    path: str = Field(min_length=1, description="the file")
    column: str = Field(
        "prompt",
        description="column with a text, or a list of messages: role, content, and what else the chat template writes",
    )
    reference_column: ReferenceColumn = None
    max_tokens: MaxTokens = None
    read_special_tokens: ReadSpecialTokens = False


class DatasetPrompts(Config):
    """Prompts from a dataset by name, or from a local directory in the hub's format, read by the datasets library."""

    source: Literal["datasets"]
    name: str = Field(min_length=1, description="name on the data hub, or a local directory")
    subset: str | None = Field(None, description="configuration of the dataset, if it has several")
    split: str = Field("train", min_length=1, description="split to read, or a slice of it, such as train[:1000]")
    column: str = Field(
        "prompt",
        description="column with a text, or a list of messages: role, content, and what else the chat template writes",
    )
    reference_column: ReferenceColumn = None
    max_tokens: MaxTokens = None
    read_special_tokens: ReadSpecialTokens = False


Prompts = Annotated[GeneratedPrompts | FilePrompts | DatasetPrompts, Field(discriminator="source")]
