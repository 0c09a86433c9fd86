"""Generated conversations are checked before anything is loaded, as those of files are."""

from pathlib import Path
from typing import Any

import pytest

from flows.registry.recipes import parse_recipe
from flows.workers.prompts import check_source, trial_of
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from support.recipes import TINY
from support.tiny import tiny_tokenizer


def recipe(directory: Path, **more: Any) -> Recipe:
    directory.joinpath("config.json").write_text('{"model_type": "llama", "max_position_embeddings": 512}')
    return parse_recipe(
        {
            **TINY,
            "policy": {"source": "pretrained", "path": str(directory)},
            "prompts": {"source": "generated", "corpus": "json_objects", "train": 20},
            **more,
        }
    )


def test_generated_conversations_are_tokenised_at_once_for_a_pretrained_policy(tmp_path: Path) -> None:
    tiny_tokenizer(chat_template=True).save_pretrained(tmp_path)
    prompts, table = check_source(recipe(tmp_path), None, print)
    assert table is not None
    trial = trial_of(prompts[0])
    assert table["split"].to_pylist() == ["train"] * 20 + ["evaluation"] * 8
    assert trial.messages == [{key: row[key] for key in ("role", "content")} for row in table["messages"][0].as_py()]
    assert trial.reference_answer == table["reference_answer"][0].as_py()


def test_a_policy_without_a_template_and_a_corpus_that_is_too_small(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the policy's tokenizer has no chat template"):
        check_source(recipe(tmp_path), None, print)
    few = {"source": "generated", "corpus": "json_objects", "train": 9999}
    with pytest.raises(ConfigError, match="9999 prompts were asked for, the train split of this corpus has 3200"):
        check_source(recipe(tmp_path, prompts=few), None, print)
