"""Prompts, and texts to learn from, that rondo generates itself, so that a run needs no data hub."""

from collections.abc import Mapping

from pipeline.data.corpora.additions import Additions
from pipeline.data.corpora.base import Corpus, CorpusPrompt, Split, TextCorpus, split_of
from pipeline.data.corpora.film_reviews import FilmReviews
from pipeline.data.corpora.instructions import Instructions
from pipeline.data.corpora.json_objects import JsonObjects
from pipeline.errors import ConfigError

TEXT_CORPORA: Mapping[str, TextCorpus] = {"film_reviews": FilmReviews(), "additions": Additions()}
"""Those that a warm start can learn from."""
CORPORA: Mapping[str, Corpus] = {**TEXT_CORPORA, "json_objects": JsonObjects(), "instructions": Instructions()}

__all__ = ["CORPORA", "TEXT_CORPORA", "Corpus", "CorpusPrompt", "Split", "TextCorpus", "get_corpus", "split_of"]


def get_corpus(name: str) -> Corpus:
    """Returns the generated corpus of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CORPORA:
        raise ConfigError(f"there is no corpus '{name}': choose one of {', '.join(sorted(CORPORA))}")
    return CORPORA[name]
