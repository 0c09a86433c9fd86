"""The generated corpora of texts: splits that cannot overlap, a grammar that parses what it writes and nothing else."""

from statistics import fmean
from typing import get_args

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from pipeline.config.base import Corpus, TextCorpus
from pipeline.data.corpora import CORPORA, TEXT_CORPORA, get_corpus, split_of
from pipeline.data.corpora.additions import _unordered, pupil
from pipeline.data.corpora.base import generator
from pipeline.data.corpora.film_reviews import CLAUSES, WORDS, parse, review
from pipeline.errors import ConfigError

SPLITS = ("warm_start", "train", "evaluation")
# How many prompts each split has: of 120,960 openings and 10,000 problems, 45, 45 and 10 in a hundred.
SIZES = {"film_reviews": (50_000, 50_000, 12_000), "additions": (3_600, 3_600, 800)}


@pytest.mark.parametrize("name", sorted(TEXT_CORPORA))
def test_the_splits_never_share_a_prompt(name: str) -> None:
    corpus = TEXT_CORPORA[name]
    train, evaluation = ({prompt.content for prompt in corpus.prompts(split, 800, 0)} for split in SPLITS[1:])
    other_seed = {prompt.content for prompt in corpus.prompts("evaluation", 800, 7)}
    warm_start = {prompt for prompt, _ in corpus.texts(5000, 0)}
    assert len(train) == len(evaluation) == 800
    assert not train & evaluation
    assert not train & other_seed
    assert not warm_start & (train | evaluation | other_seed)


@pytest.mark.parametrize("name", sorted(TEXT_CORPORA))
def test_every_prompt_of_a_split_hashes_to_it(name: str) -> None:
    corpus = get_corpus(name)
    for split, size in zip(SPLITS, SIZES[name], strict=True):
        prompts = [str(prompt.content) for prompt in corpus.prompts(split, size, 3)]
        assert len(set(prompts)) == size
        # Of a problem and its mirror, the hash of the ordered one decides.
        keys = {_unordered(prompt) if name == "additions" else prompt for prompt in prompts}
        assert {split_of(key) for key in keys} == {split}


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    corpus = get_corpus(name)
    assert corpus.prompts("train", 50, 1) == corpus.prompts("train", 50, 1) != corpus.prompts("train", 50, 2)
    if name in TEXT_CORPORA:
        texts = TEXT_CORPORA[name].texts
        assert texts(50, 1) == texts(50, 1) != texts(50, 2)


def test_the_table_has_what_a_recipe_may_name() -> None:
    assert set(CORPORA) == set(get_args(Corpus))
    assert set(TEXT_CORPORA) == set(get_args(TextCorpus))


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_a_corpus_has_what_it_says(name: str) -> None:
    """A recipe believes the two attributes before anything is generated."""
    corpus = get_corpus(name)
    for prompt in corpus.prompts("train", 200, 0):
        assert isinstance(prompt.content, list) == corpus.chat
        assert (prompt.reference_answer is not None) == corpus.has_reference_answers


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_more_prompts_than_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="1000000 prompts were asked for, the evaluation split"):
        get_corpus(name).prompts("evaluation", 1_000_000, 0)


def test_an_unknown_corpus() -> None:
    with pytest.raises(ConfigError, match=r"no corpus 'limericks': choose one of additions, film_reviews"):
        get_corpus("limericks")


def test_every_review_parses_whole() -> None:
    rng = generator("test", 0)
    for _ in range(5000):
        text = review(rng)
        parsed, total = parse(text)
        assert (parsed, total) == (3, 3), text
        assert text.startswith(" ")
        assert text.endswith(".")


@pytest.mark.parametrize(
    ("answer", "parsed", "total"),
    [
        (" The plot felt great, and I loved the music. It was set in Rome.", 3, 3),
        (" The plot felt great, while I loved the plot. I would never recommend it.", 3, 3),
        ("", 0, 3),
        ("  ", 0, 3),
        (".", 0, 3),
        (" great great great.", 0, 3),
        (" The plot felt great great, and I loved the music. It was set in Rome.", 2, 3),
        (" the plot felt great, and I loved the music. it was set in Rome.", 1, 3),  # no capitals
        (" The plot felt great, and I loved the music. It was set in", 2, 3),  # cut at max_tokens
        (" The plot felt great, and I loved the music.", 2, 3),  # a clause is missing
        (" The plot felt great, but. It was set in Rome.", 1, 3),
        (" The plot felt great, and I loved the music.  It was set in Rome.", 2, 3),  # two blanks
        (" The plot felt great. I loved the music. It was set in Rome.", 1, 3),  # right clauses in wrong places
        (" I loved the music, and the plot felt great. It was set in Rome.", 1, 3),
        (" The plot felt great, and I loved the music. It was set in Rome. It was a joy.", 3, 4),  # one too many
        (" The plot felt great, and I loved the music, and I loved the plot. It was set in Rome.", 3, 4),
        (" The film felt great, and I loved the music. It was set in Oslo.", 1, 3),  # words that it does not have
    ],
)
def test_parse(answer: str, parsed: int, total: int) -> None:
    assert parse(answer) == (parsed, total)


def test_openings_are_neutral_and_reviews_mixed() -> None:
    texts = TEXT_CORPORA["film_reviews"].texts(2000, 0)
    polarity = SentimentIntensityAnalyzer().polarity_scores
    openings = [polarity(prompt)["compound"] for prompt, _ in texts]
    answers = [polarity(answer)["compound"] for _, answer in texts]
    assert abs(fmean(openings)) < 0.05
    # Measured 0.11, 0.43 and 0.29. The standard error of the mean is 0.55 / sqrt(2000) = 0.012.
    assert 0 < fmean(answers) < 0.2
    assert fmean(answer > 0.3 for answer in answers) < 0.5
    assert fmean(answer < -0.3 for answer in answers) > 0.25


def test_each_sentiment_has_many_words() -> None:
    for sentiment in ("praise", "blame", "tell"):
        slots = {
            part[1:-1] for clause in CLAUSES if clause.sentiment == sentiment for part in clause.parts if "{" in part
        }
        assert sum(len(WORDS[slot]) for slot in slots) > 35


def test_the_pupil_is_right_about_every_other_time() -> None:
    texts = TEXT_CORPORA["additions"].texts(5000, 0)
    right = [answer.rpartition(", ")[2] == str(sum(map(int, problem[:-1].split("+")))) for problem, answer in texts]
    # No carry: 0.55 * 0.75; a carry, remembered: 0.45 * 0.4 * 0.75; forgotten, with a slip that mends it:
    # 0.45 * 0.6 * 0.125; together 0.58. The standard error is 0.007.
    assert 0.53 < fmean(right) < 0.63


def test_the_pupil_forgets_carries_and_slips_by_one() -> None:
    """27+58 is 85; without the carry 75; the tens may come out one too large or too small."""
    rng = generator("test", 0)
    answers = {pupil(27, 58, rng) for _ in range(500)}
    assert answers == {
        "7+8=15, 2+5+1=8, 85", "7+8=15, 2+5+1=7, 75", "7+8=15, 2+5+1=9, 95",
        "7+8=15, 2+5+0=7, 75", "7+8=15, 2+5+0=6, 65", "7+8=15, 2+5+0=8, 85",
    }  # fmt: skip


def test_a_problem_and_its_mirror_are_of_one_split() -> None:
    corpus = TEXT_CORPORA["additions"]
    held_out = {prompt.content for prompt in corpus.prompts("evaluation", 700, 0)}
    seen = {problem for problem, _ in corpus.texts(5000, 0)} | {
        str(p.content) for p in corpus.prompts("train", 2500, 0)
    }
    mirrored = {"+".join(reversed(problem[:-1].split("+"))) + "=" for problem in seen}
    assert held_out.isdisjoint(seen | mirrored)


def test_the_reference_answers_are_the_sums() -> None:
    for prompt in get_corpus("additions").prompts("evaluation", 50, 0):
        left, right = str(prompt.content).removesuffix("=").split("+")
        assert prompt.reference_answer == str(int(left) + int(right))
