"""A grammar of short film reviews with mixed sentiment, and the parser of the same grammar.

A review is an opening, which is the prompt, and two clauses, which are the answer:

    Last Friday I saw a French drama with my sister.| The plot felt clever, but I disliked the music.

Each clause praises, blames or merely tells. Openings are neutral. The generator and the parser read the same
``CLAUSES``, so that what one writes the other accepts. A review makes no remark twice: "the plot felt ..." may
be followed by "I liked the plot", but not by "the plot seemed ...". A second one does not parse; nor does a third
clause. All reviews have as many clauses, because a judge of sentiment gives more to a longer text of equal sentiment:
with one to three clauses, a policy first learned to write three, and then never to stop.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple, TypeVar

from pipeline.corpora.base import CorpusPrompt, Split, draw, generator, split_of

CLAUSES_OF_A_REVIEW = 2

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
    "gladly": (" gladly", " happily"),
    "hardly": (" hardly", " never"),
    "number": (" two", " three", " four"),
    "place": (" Paris", " Rome", " the desert", " the mountains"),
}  # fmt: skip

Value = TypeVar("Value")


class Clause(NamedTuple):
    """A kind of clause. Its parts are words, or names of slots in braces.

    Clauses of one remark exclude each other in a review, unless they speak of different things: see ``_topic``.
    """

    remark: str
    sentiment: str
    parts: tuple[str, ...]

    @property
    def weight(self) -> int:
        """How often it is drawn, in proportion: an aspect can be spoken of in more ways than the film as a whole."""
        return 3 if "{aspect}" in self.parts else 1


CLAUSES: tuple[Clause, ...] = (
    Clause("quality", "praise", ("the ", "{aspect}", "{was}", "{degree}", "{good}")),
    Clause("opinion", "praise", ("I", "{liked}", " the ", "{aspect}")),
    Clause("public", "praise", ("{public}", "{cheered}")),
    Clause("verdict", "praise", ("it was a", "{gem}")),
    Clause("again", "praise", ("I would", "{gladly}", " watch it again")),
    Clause("quality", "blame", ("the ", "{aspect}", "{was}", "{degree}", "{bad}")),
    Clause("opinion", "blame", ("I", "{disliked}", " the ", "{aspect}")),
    Clause("public", "blame", ("{public}", "{complained}")),
    Clause("verdict", "blame", ("it was a", "{mess}")),
    Clause("again", "blame", ("I would", "{hardly}", " watch it again")),
    Clause("quality", "tell", ("the ", "{aspect}", "{was}", "{degree}", "{plain}")),
    Clause("opinion", "tell", ("I", "{noticed}", " the ", "{aspect}")),
    Clause("public", "tell", ("{public}", "{talked}")),
    Clause("verdict", "tell", ("it was a", "{remake}")),
    Clause("length", "tell", ("it lasted", "{number}", " hours")),
    Clause("setting", "tell", ("it was set in", "{place}")),
)
SENTIMENTS = (("praise", 0.36), ("blame", 0.36), ("tell", 0.28))
JOINTS = (". ", ", and ", ", but ", ", while ")
_SENTENCE_END = 0.5


class FilmReviews:
    """Openings as prompts, two clauses as answers."""

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Distinct openings of one split: see ``Corpus.prompts``."""
        return [CorpusPrompt(text) for text in draw(_openings(split), split, count, seed)]

    def texts(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Whole reviews: an opening, and an answer that begins with a blank."""
        rng = generator("film_reviews", seed)
        openings = _openings("warm_start")
        return [(rng.choice(openings), review(rng)) for _ in range(count)]


def review(rng: random.Random) -> str:
    """An answer: a blank, and two clauses of mixed sentiment that end in a full stop."""
    clauses: dict[str, str] = {}
    while len(clauses) < CLAUSES_OF_A_REVIEW:
        topic, text = _draw_clause(rng)
        clauses.setdefault(topic, text)
    first, *others = clauses.values()
    answer = " " + _capital(first)
    for clause in others:
        joint = JOINTS[0] if rng.random() < _SENTENCE_END else rng.choice(JOINTS[1:])
        answer += joint + (_capital(clause) if joint == JOINTS[0] else clause)
    return answer + "."


def parse(answer: str) -> tuple[int, int]:
    """How many clauses of an answer the grammar can produce, and how many clauses the answer has.

    A sentence starts with a capital and ends with a full stop; a clause parses where a kind of clause matches it as a
    whole, its topic is new in this answer, and it is among the first two. Words after the last full stop are a
    clause that does not parse. An answer without words has no clause: (0, 0).
    """
    *sentences, rest = answer.strip().split(".")
    topics: set[str] = set()
    parsed = total = 0
    for number, sentence in enumerate(sentences):
        for clause in _split_sentence(sentence if number == 0 else sentence.removeprefix(" ")):
            total += 1
            topic = _find_topic(clause)
            if topic is not None and topic not in topics and total <= CLAUSES_OF_A_REVIEW:
                topics.add(topic)
                parsed += 1
    return parsed, total + bool(rest.strip())


def _split_sentence(sentence: str) -> list[str]:
    first, *others = re.split(", (?:and|but|while) ", sentence)
    if first != _capital(first):
        return ["", *others]  # a sentence that starts small: its first clause must not parse
    small = first if first.startswith("I ") else first[:1].lower() + first[1:]
    return [small, *others]


def _find_topic(clause: str) -> str | None:
    for kind, pattern in _patterns():
        if match := pattern.fullmatch(clause):
            return _topic(kind, match.groupdict())
    return None


@cache
def _patterns() -> tuple[tuple[Clause, re.Pattern[str]], ...]:
    return tuple((clause, re.compile("".join(map(_pattern, clause.parts)))) for clause in CLAUSES)


def _pattern(part: str) -> str:
    slot = _slot(part)
    if slot is None:
        return re.escape(part)
    options = "|".join(re.escape(word) for word in sorted(set(WORDS[slot])))
    return f"(?P<{slot}>{options})"


def _draw_clause(rng: random.Random) -> tuple[str, str]:
    sentiment = _weighted(rng, SENTIMENTS)
    kind = _weighted(rng, [(clause, clause.weight) for clause in CLAUSES if clause.sentiment == sentiment])
    filled = {slot: rng.choice(WORDS[slot]) for part in kind.parts if (slot := _slot(part))}
    text = "".join(filled[slot] if (slot := _slot(part)) else part for part in kind.parts)
    return _topic(kind, filled), text


def _topic(clause: Clause, filled: Mapping[str, str]) -> str:
    return f"{clause.remark} {filled.get('aspect') or filled.get('public', '')}"


def _slot(part: str) -> str | None:
    return part[1:-1] if part.startswith("{") else None


def _weighted(rng: random.Random, options: Sequence[tuple[Value, float]]) -> Value:
    return rng.choices([value for value, _ in options], [weight for _, weight in options])[0]


def _capital(clause: str) -> str:
    return clause[:1].upper() + clause[1:]


@cache
def _openings(split: Split) -> tuple[str, ...]:
    texts = ("".join(parts) for parts in product(*_OPENING))
    return tuple(text for text in texts if split_of(text) == split)
