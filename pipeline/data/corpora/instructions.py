"""Conversations that ask about a topic and set one or two limits to the answer, which a program can check.

In the manner of IFEval (arXiv:2311.07911), with topics, wordings and constraints of our own. The reference answer
states the topic's words and the constraints, for the judge ``instructions``. The topic decides the split, so that
topics that are held out are new as well as their prompts.
"""

import random
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import ClassVar, NamedTuple

from pipeline.data.conversations import Message
from pipeline.data.corpora.base import CorpusPrompt, Split, draw, generator, split_of
from pipeline.data.corpora.chat import conversation
from pipeline.data.corpora.constraints import KINDS, Instruction, Value, write_instruction

TOPICS = (
    # nature
    "rivers", "mountains", "deserts", "volcanoes", "rainbows", "thunderstorms", "glaciers", "islands", "forests",
    "earthquakes", "clouds", "tides", "comets", "planets", "fog", "caves",
    # animals and plants
    "whales", "bees", "ants", "eagles", "frogs", "elephants", "cats", "dogs", "sharks", "bats", "roses", "mushrooms",
    "cactuses", "sunflowers", "oaks", "ferns",
    # food
    "bread", "chocolate", "coffee", "tea", "honey", "rice", "tomatoes", "onions", "soup", "pasta", "spices", "yoghurt",
    "potatoes", "olives", "pancakes", "picnics",
    # things and how they work
    "bridges", "clocks", "bicycles", "trains", "ships", "mirrors", "magnets", "batteries", "telescopes", "windmills",
    "umbrellas", "candles", "maps", "kites", "zips", "locks",
    # people and what they do
    "teachers", "farmers", "nurses", "painters", "pirates", "firefighters", "chess", "football", "swimming", "dancing",
    "gardening", "cooking", "singing", "camping", "sewing", "fishing", "drawing", "hiking",
    # life
    "sleep", "dreams", "birthdays", "weddings", "holidays", "friendship", "laughter", "schools", "libraries", "museums",
    "markets", "theatres", "newspapers", "money", "languages", "handwriting", "music", "poetry",
)  # fmt: skip
REQUESTS = (
    "Tell me something about {topic}.",
    "Explain to a child what is special about {topic}.",
    "Why are so many people interested in {topic}?",
    "Write a short text about {topic}.",
    "What should everybody know about {topic}?",
    "Give me a reason to learn more about {topic}.",
)
VARIANTS = 12
"""Prompts for each topic and request, with different constraints."""
SELDOM: Mapping[str, float] = {"bullets": 0.5, "lower_case": 0.5, "upper_case": 0.25, "quoted": 0.25}
"""How often a kind is drawn, against 1 for the others: these hold in at most one of fifty answers of a small model."""
TWO_SHARE = 0.5
"""Share of the prompts that are drawn with two constraints; the others have one."""
SYSTEMS = (
    "You are a helpful assistant.",
    "You follow instructions to the letter.",
    "You write for a museum whose visitors have little time.",
    "Be friendly and plain.",
    "You help people who learn English.",
)


class _Ask(NamedTuple):
    """What makes a prompt: the rest of its conversation follows from these."""

    topic: str
    wording: str
    constraints: tuple[tuple[str, Value], ...]


class Instructions:
    """Requests with constraints; the reference answer states them as JSON."""

    chat: ClassVar[bool] = True
    has_reference_answers: ClassVar[bool] = True

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Draws distinct requests of one split, each in its conversation: see ``Corpus.prompts``."""
        asks = draw(_asks(split), split, count, seed)
        return [
            CorpusPrompt(_conversation(ask), write_instruction(Instruction((ask.topic,), dict(ask.constraints))))
            for ask in asks
        ]


@cache
def _asks(split: Split) -> tuple[_Ask, ...]:
    topics = [topic for topic in TOPICS if split_of(topic) == split]
    return tuple(
        _Ask(topic, wording, constraints)
        for topic, wording in product(topics, REQUESTS)
        for constraints in _variants(topic, wording)
    )


def _variants(topic: str, wording: str) -> list[tuple[tuple[str, Value], ...]]:
    """Draws sets of constraints that differ from each other, the same ones whatever the seed of a run."""
    rng = generator("instructions", topic, wording)
    found: dict[frozenset[tuple[str, Value]], tuple[tuple[str, Value], ...]] = {}
    while len(found) < VARIANTS:
        constraints = _draw(rng)
        found.setdefault(frozenset(constraints), constraints)
    return list(found.values())


def _draw(rng: random.Random) -> tuple[tuple[str, Value], ...]:
    """Draws one constraint, or two that can be fulfilled together."""
    kinds = [_draw_kind(rng, list(KINDS))]
    if rng.random() < TWO_SHARE:
        taken = KINDS[kinds[0]].aspects
        kinds.append(_draw_kind(rng, [kind for kind in KINDS if not KINDS[kind].aspects & taken]))
    return tuple((kind, rng.choice(KINDS[kind].values)) for kind in kinds)


def _draw_kind(rng: random.Random, kinds: list[str]) -> str:
    return rng.choices(kinds, [SELDOM.get(kind, 1.0) for kind in kinds])[0]


def _conversation(ask: _Ask) -> list[Message]:
    rng = generator("instructions", *ask)
    asked = [rng.choice(KINDS[kind].asks).format(value=value) for kind, value in ask.constraints]
    return conversation(" ".join([ask.wording.format(topic=ask.topic), *asked]), rng, systems=SYSTEMS)
