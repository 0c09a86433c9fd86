"""Texts that rondo generates itself, so that a run needs no data hub."""

from collections.abc import Mapping

from pipeline.data.corpora.additions import Additions
from pipeline.data.corpora.base import Corpus, CorpusPrompt, Split, split_of
from pipeline.data.corpora.film_reviews import FilmReviews
from pipeline.errors import ConfigError

CORPORA: Mapping[str, Corpus] = {"film_reviews": FilmReviews(), "additions": Additions()}

__all__ = ["CORPORA", "Corpus", "CorpusPrompt", "Split", "get_corpus", "split_of"]


def get_corpus(name: str) -> Corpus:
    """Returns the generated corpus of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CORPORA:
        raise ConfigError(f"there is no corpus '{name}': choose one of {', '.join(sorted(CORPORA))}")
    return CORPORA[name]
