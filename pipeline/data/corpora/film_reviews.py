"""A grammar of short film reviews with mixed sentiment, and the parser of the same grammar.

A review is an opening, which is the prompt, and an answer of three clauses: a quality, an opinion, and a remark.

    Last Friday I saw a French drama with my sister.| The plot felt clever, but I disliked the music. Everyone slept.

Each clause praises, blames or merely tells; openings are neutral. The generator and the parser read the same
``CLAUSES``, so that what one writes the other accepts. All answers have equally many clauses, and each place has a kind
of its own. For a judge of sentiment gives more to a longer text of equal sentiment. When the grammar allowed one to
three clauses, a policy first learned to write three, and then never to stop.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import ClassVar, NamedTuple, TypeVar

from pipeline.data.corpora.base import CorpusPrompt, Split, draw, generator, split_of

_OPENING: tuple[tuple[str, ...], ...] = (
    ("Yesterday", "Last Friday", "Last week", "On Sunday", "On Monday evening", "This morning",
     "Two days ago", "In April", "In October", "Last winter", "Last summer", "During the holidays",
     "After work", "Before dinner"),
    (" I", " we"),
    (" saw", " watched", " went to"),
    (" a new", " an old", " a short", " a long", " a French", " an Italian", " a Danish", " a Spanish",
     " a Japanese", " a Polish", " an animated", " a silent"),
    (" drama", " musical", " western", " documentary", " mystery", " fantasy", " biopic", " road film",
     " dance film", " film"),
    (" with my sister", " with my brother", " with my mother", " with a neighbour", " with two colleagues",
     " with our children", " with a student", " at home", " in Lisbon", " in Berlin", " at the old cinema",
     " by the river"),
    (".",),
)  # fmt: skip

WORDS: Mapping[str, tuple[str, ...]] = {
    "aspect": ("plot", "story", "acting", "music", "ending", "dialogue", "script", "pacing", "cast", "lighting",
               "editing", "opening", "costumes", "scenery", "language", "tone"),
    "was": (" felt", " seemed", " looked"),
    "degree": ("", "", " very", " quite", " rather", " really"),
    "good": (" good", " great", " lovely", " charming", " clever", " superb", " brilliant", " wonderful", " beautiful",
             " elegant", " excellent", " perfect", " sweet", " amazing"),
    "bad": (" bad", " awful", " dull", " boring", " weak", " poor", " terrible", " annoying", " ugly", " horrible",
            " lame", " hopeless", " painful", " dismal"),
    "plain": (" long", " short", " slow", " quiet", " loud", " simple", " modern", " unusual", " dark", " colourful"),
    "liked": (" loved", " liked", " enjoyed", " admired", " adored", " praised"),
    "disliked": (" hated", " disliked", " regretted", " criticised", " mocked"),
    "noticed": (" noticed", " discussed", " studied", " remember"),
    "public": ("the audience", "the children", "everyone"),
    "cheered": (" laughed", " smiled", " cheered", " applauded"),
    "complained": (" complained", " cried", " suffered"),
    "talked": (" talked", " slept", " left early", " sat still"),
    "gem": (" masterpiece", " triumph", " treat", " joy", " delight"),
    "mess": (" mess", " disaster", " failure", " shame", " bore"),
    "remake": (" remake", " sequel", " first attempt", " true story"),
    "return": (" recommend it", " enjoy it twice", " love to see it again"),
    "number": (" two", " three", " four"),
    "place": (" Paris", " Rome", " the desert", " the mountains"),
}  # fmt: skip

Value = TypeVar("Value")


class Clause(NamedTuple):
    """A way to write a clause: its kind, its sentiment, and its parts, which are words or names of slots in braces."""

    kind: str
    sentiment: str
    parts: tuple[str, ...]


CLAUSES: tuple[Clause, ...] = (
    Clause("quality", "praise", ("the ", "{aspect}", "{was}", "{degree}", "{good}")),
    Clause("quality", "blame", ("the ", "{aspect}", "{was}", "{degree}", "{bad}")),
    Clause("quality", "tell", ("the ", "{aspect}", "{was}", "{degree}", "{plain}")),
    Clause("opinion", "praise", ("I", "{liked}", " the ", "{aspect}")),
    Clause("opinion", "blame", ("I", "{disliked}", " the ", "{aspect}")),
    Clause("opinion", "tell", ("I", "{noticed}", " the ", "{aspect}")),
    Clause("remark", "praise", ("{public}", "{cheered}")),
    Clause("remark", "praise", ("it was a", "{gem}")),
    Clause("remark", "praise", ("I would", "{return}")),
    Clause("remark", "blame", ("{public}", "{complained}")),
    Clause("remark", "blame", ("it was a", "{mess}")),
    Clause("remark", "blame", ("I would never", "{return}")),
    Clause("remark", "tell", ("{public}", "{talked}")),
    Clause("remark", "tell", ("it was a", "{remake}")),
    Clause("remark", "tell", ("it lasted", "{number}", " hours")),
    Clause("remark", "tell", ("it was set in", "{place}")),
)
PLACES: tuple[tuple[str, ...], ...] = (("quality", "opinion"), ("remark",))
"""The kinds of the clauses of each sentence, in order."""
JOINTS = (", and ", ", but ", ", while ")
SENTIMENTS = (("praise", 0.36), ("blame", 0.36), ("tell", 0.28))


class FilmReviews:
    """Openings as prompts, three clauses as answers."""

    chat: ClassVar[bool] = False
    has_reference_answers: ClassVar[bool] = False

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Draws distinct openings of one split: see ``Corpus.prompts``."""
        return [CorpusPrompt(text) for text in draw(_openings()[split], split, count, seed)]

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Writes whole reviews: an opening, and an answer that begins with a blank."""
        rng = generator("film_reviews", seed)
        openings = _openings()["warm_start"]
        return [(rng.choice(openings), review(rng)) for _ in range(count)]


def review(rng: random.Random) -> str:
    """Writes an answer: sentences of clauses of mixed sentiment, each after a blank and ending in a full stop."""
    answer = ""
    for kinds in PLACES:
        first, *others = [_draw_clause(kind, rng) for kind in kinds]
        answer += " " + _capital(first) + "".join(rng.choice(JOINTS) + clause for clause in others) + "."
    return answer


def parse(answer: str) -> tuple[int, int]:
    """Counts the clauses of an answer that the grammar can produce in their place, and all its clauses.

    A clause parses if one of the kind that belongs to its place matches it as a whole. A sentence begins with a
    capital and ends with a full stop; words after the last one are a clause that does not parse. A missing clause
    counts as one that does not parse, so that the second number is at least three.
    """
    clauses = sentiments(answer)
    return sum(sentiment is not None for sentiment in clauses), len(clauses)


def sentiments(answer: str) -> list[str | None]:
    """Returns what each clause of an answer does, "praise", "blame" or "tell"; None if it does not parse.

    Clauses, and which of them parse, are as `parse` has them.
    """
    *sentences, rest = answer.strip().split(".")
    found: list[str | None] = []
    for place, sentence in enumerate(sentences):
        kinds = PLACES[place] if place < len(PLACES) else ()
        clauses = _split_sentence(sentence.removeprefix(" ") if place else sentence)
        said = [_sentiment(kind, clause) for kind, clause in zip(kinds, clauses, strict=False)]
        found += [*said, *[None] * (len(clauses) - len(said))]
    found += [None] * bool(rest.strip())
    return [*found, *[None] * (sum(map(len, PLACES)) - len(found))]


def _split_sentence(sentence: str) -> list[str]:
    """Splits a sentence into clauses; if it begins without a capital, the first is empty, which nothing matches."""
    first, *others = re.split("|".join(JOINTS), sentence)
    if first != _capital(first):
        return ["", *others]
    return [first if first.startswith("I ") else first[:1].lower() + first[1:], *others]


def _sentiment(kind: str, clause: str) -> str | None:
    return next((sentiment for pattern, sentiment in _patterns(kind) if pattern.fullmatch(clause)), None)


@cache
def _patterns(kind: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        (re.compile("".join(map(_pattern, clause.parts))), clause.sentiment)
        for clause in CLAUSES
        if clause.kind == kind
    )


def _pattern(part: str) -> str:
    slot = _slot(part)
    return re.escape(part) if slot is None else "(?:" + "|".join(map(re.escape, WORDS[slot])) + ")"


def _draw_clause(kind: str, rng: random.Random) -> str:
    sentiment = _weighted(rng, SENTIMENTS)
    clause = rng.choice([clause for clause in CLAUSES if (clause.kind, clause.sentiment) == (kind, sentiment)])
    return "".join(part if (slot := _slot(part)) is None else rng.choice(WORDS[slot]) for part in clause.parts)


def _slot(part: str) -> str | None:
    return part[1:-1] if part.startswith("{") else None


def _weighted(rng: random.Random, options: Sequence[tuple[Value, float]]) -> Value:
    return rng.choices([value for value, _ in options], [weight for _, weight in options])[0]


def _capital(clause: str) -> str:
    return clause[:1].upper() + clause[1:]


@cache
def _openings() -> Mapping[Split, Sequence[str]]:
    """Writes all openings, by their splits: hashing them takes longest, and most runs need two splits."""
    found: dict[Split, list[str]] = {"warm_start": [], "train": [], "evaluation": []}
    for parts in product(*_OPENING):
        text = "".join(parts)
        found[split_of(text)].append(text)
    return found
