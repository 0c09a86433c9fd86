"""Conversations that ask for one JSON object of one fixed form about a thing, such as an old lighthouse.

The form has three keys: ``name`` (a text), ``score`` (a whole number) and ``tags`` (two or three texts); a recipe's
``json_schema`` judge holds it as a schema. Requests show it with unquoted words for the values: who copies it has
written no JSON. The reference answer is the thing, for a judge that asks whether an answer speaks of it. The noun of
the thing decides the split, so that things that are held out are new as well as their prompts.
"""

from functools import cache
from itertools import product
from typing import ClassVar, NamedTuple

from pipeline.data.conversations import Message
from pipeline.data.corpora.base import CorpusPrompt, Split, draw, generator, split_of
from pipeline.data.corpora.chat import EARLIER, Turn, conversation, with_article

ADJECTIVES = (
    "old", "unusual", "small", "large", "tiny", "famous", "quiet", "modern", "strange", "popular", "lonely", "clever",
    "green", "colourful", "forgotten", "beautiful",
)  # fmt: skip
NOUNS = (
    # tools and things of a house
    "hammer", "ladder", "kettle", "lantern", "mirror", "umbrella", "candle", "blanket", "notebook", "needle", "bucket",
    "compass", "basket", "pillow", "teapot", "wardrobe", "hourglass", "clock", "broom", "shovel",
    # food
    "soup", "pancake", "sandwich", "salad", "pizza", "cheese", "dumpling", "biscuit", "pudding", "omelette", "curry",
    "lemonade", "porridge", "marmalade",
    # animals
    "fox", "owl", "tortoise", "dolphin", "spider", "penguin", "horse", "squirrel", "rabbit", "beetle", "parrot",
    "hedgehog", "camel", "otter", "goose", "salmon", "wolf", "butterfly",
    # people at work
    "baker", "sailor", "teacher", "carpenter", "gardener", "doctor", "painter", "farmer", "plumber", "violinist",
    "librarian", "tailor", "pilot", "cook", "dentist", "shepherd",
    # places
    "lighthouse", "market", "bridge", "library", "island", "harbour", "castle", "museum", "village", "garden",
    "station", "theatre", "waterfall", "forest", "mill", "cave", "beach", "hotel",
    # ways to travel, to play and to make music
    "tram", "canoe", "ferry", "sledge", "scooter", "balloon", "caravan", "submarine", "violin", "drum", "piano",
    "kite", "puzzle", "chessboard",
)  # fmt: skip
REQUESTS = (
    "Describe {thing} as one JSON object.",
    "Give me one JSON object about {thing}.",
    "I need a JSON object for {thing}.",
    "Write one JSON object that describes {thing}.",
    "Make a JSON record of {thing}.",
)
FORM = 'Write nothing else, and use this form: {"name": text, "score": whole number, "tags": [two or three words]}'
"""Says what is wanted without an example of it: one in every prompt would be copied, and teach nothing."""
SYSTEMS = (
    "You are a helpful assistant.",
    "You answer with JSON and nothing else.",
    "You fill in forms for a catalogue. Be brief and exact.",
    "Your answers are read by a program.",
    "You are a careful clerk who keeps a list of many things.",
)


def request(thing: str, wording: str) -> str:
    """Writes a request for the object that describes a thing."""
    return f"{wording.format(thing=with_article(thing))} {FORM}"


WORKED: tuple[Turn, ...] = (
    (request("red bicycle", REQUESTS[0]), '{"name": "red bicycle", "score": 7, "tags": ["wheels", "street"]}'),
    (request("round table", REQUESTS[1]), '{"name": "round table", "score": 5, "tags": ["wood", "kitchen", "meals"]}'),
    (request("long river", REQUESTS[2]), '{"name": "long river", "score": 9, "tags": ["water", "boats", "fish"]}'),
    (request("cold winter", REQUESTS[3]), '{"name": "cold winter", "score": 3, "tags": ["snow", "ice"]}'),
)
"""Earlier turns that show such an object, of a thing that the corpus never asks for."""
TURNS = (*EARLIER, *WORKED, *WORKED)
"""What an earlier turn is drawn from: every other one shows an object, so that a sixth of all prompts do."""


class _Ask(NamedTuple):
    """What makes a prompt: the rest of its conversation follows from these."""

    noun: str
    adjective: str
    wording: str


class JsonObjects:
    """Requests for a JSON object about a thing; the reference answer is the thing, as ``old lighthouse``."""

    chat: ClassVar[bool] = True
    has_reference_answers: ClassVar[bool] = True

    def prompts(self, split: Split, count: int, seed: int) -> list[CorpusPrompt]:
        """Draws distinct requests of one split, each in its conversation: see ``Corpus.prompts``."""
        asks = draw(_asks(split), split, count, seed)
        return [CorpusPrompt(_conversation(ask), f"{ask.adjective} {ask.noun}") for ask in asks]


@cache
def _asks(split: Split) -> tuple[_Ask, ...]:
    nouns = [noun for noun in NOUNS if split_of(with_article(noun)) == split]
    return tuple(_Ask(*parts) for parts in product(nouns, ADJECTIVES, REQUESTS))


def _conversation(ask: _Ask) -> list[Message]:
    rng = generator("json_objects", *ask)
    return conversation(request(f"{ask.adjective} {ask.noun}", ask.wording), rng, systems=SYSTEMS, earlier=TURNS)
