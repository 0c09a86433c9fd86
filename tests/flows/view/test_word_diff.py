"""What two texts differ in."""

import random
import time

from flows.view.word_diff import MOST_WORDS, word_diff


def test_words_that_only_one_text_has_are_marked() -> None:
    found = word_diff("the  quick fox\nruns", "the slow red fox runs")
    assert found.first == [(False, "the  "), (True, "quick "), (False, "fox\nruns")]
    assert found.second == [(False, "the "), (True, "slow red "), (False, "fox runs")]
    assert found.compared is None
    assert word_diff("", "new").second == [(True, "new")]


def test_nothing_of_a_long_text_is_lost_and_its_end_is_not_marked() -> None:
    first, second = (" ".join([f"w{n}" for n in range(MOST_WORDS)] + [end] * 5) for end in ("a", "b"))
    found = word_diff(first, second)
    assert "".join(text for _, text in found.first) == first
    assert "".join(text for _, text in found.second) == second
    assert not any(changed for changed, _ in (*found.first, *found.second))
    assert found.compared == MOST_WORDS


def test_texts_of_a_few_words_that_repeat_for_ever_take_no_time() -> None:
    """Two seconds without a bound on the pairs of equal words; 0.3 s are what a whole page may take."""
    words = random.Random(0)
    first, second = (" ".join(words.choices("abcdefg", k=MOST_WORDS)) for _ in range(2))
    began = time.process_time()
    found = word_diff(first, second)
    assert time.process_time() - began < 0.3
    assert found.compared is not None
    assert found.compared < MOST_WORDS
