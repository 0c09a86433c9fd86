"""Agreement of labellers and judges, by hand, and their pace."""

import pytest

from flows.analysis.agreement import agreements, cohens_kappa, labellers, labels_per_hour
from pipeline.judges.support.human_labels import digest
from support.labelled import asked_about, said


def test_kappa_by_hand() -> None:
    """Of ten pairs both say first of 4 and second of 3: p = 0.7, e = (5 * 6 + 5 * 4) / 100 = 0.5, kappa = 0.2 / 0.5."""
    pairs = [("f", "f")] * 4 + [("s", "s")] * 3 + [("f", "s")] * 1 + [("s", "f")] * 2
    assert cohens_kappa(pairs) == pytest.approx(0.4, abs=1e-12)


def test_a_tie_is_an_answer_like_others() -> None:
    """p = 2/4; e = (2 * 1 + 1 * 1 + 1 * 2) / 16 = 5/16; kappa = (8 - 5) / (16 - 5)."""
    assert cohens_kappa([("f", "f"), ("f", "s"), ("s", "t"), ("t", "t")]) == pytest.approx(3 / 11, abs=1e-12)


def test_less_than_chance_is_negative_and_one_answer_alone_says_nothing() -> None:
    assert cohens_kappa([("f", "s"), ("s", "f")]) == -1.0
    assert cohens_kappa([("f", "f"), ("f", "f")]) is None
    assert cohens_kappa([]) is None


def test_who_always_follows_a_judge_agrees_beyond_chance() -> None:
    """The judge prefers the first answer of each question, as that of preferences does: this must not look constant."""
    asked = asked_about(8, {"vader": [1.0] * 8})
    smaller = [digest(q.answers[0].text) < digest(q.answers[1].text) for q in asked.questions]
    assert 0 < sum(smaller) < 8, "both sides occur, or the test says nothing"
    (found,) = agreements(asked, [said(question, "ann", "first") for question in asked.questions])
    assert (found.other, found.is_judge, found.pairs, found.share, found.kappa) == ("vader", True, 8, 1.0, 1.0)
    (found,) = agreements(asked, [said(question, "ann", "second") for question in asked.questions])
    # They never agree, and would by chance on e = 2 a (8 - a) / 64, if the judge says "smaller" a times.
    chance = 2 * sum(smaller) * (8 - sum(smaller)) / 64
    assert (found.share, found.kappa) == (0.0, pytest.approx(-chance / (1 - chance)))


def test_only_what_both_have_decided_is_compared() -> None:
    asked = asked_about(4, {"vader": [1.0, -1.0, 0.0, None], "grammar": [None] * 4})
    q = asked.questions
    choices = [
        said(q[0], "ann", "first"), said(q[1], "ann", "first"), said(q[2], "ann", "tie"), said(q[3], "ann", "second"),
        said(q[0], "bob", "first"), said(q[1], "bob", "skip"), said(q[3], "bob", "withdrawn"),
        said(asked_about(9).questions[8], "bob", "first"),
    ]  # fmt: skip
    found = {(a.one, a.other): (a.pairs, a.share) for a in agreements(asked, choices)}
    assert found == {
        ("ann", "vader"): (3, 2 / 3), ("bob", "vader"): (1, 1.0), ("ann", "bob"): (1, 1.0),
        ("ann", "grammar"): (0, None), ("bob", "grammar"): (0, None),
    }  # fmt: skip
    counted = [(person.name, person.answered, person.ties, person.skipped) for person in labellers(asked, choices)]
    assert counted == [("ann", 4, 1, 0), ("bob", 2, 0, 1)], "the ninth question is of no pair of this round"


def test_the_pace_leaves_pauses_and_other_programs_out() -> None:
    """Gaps of 10 and 20 s, then a pause of 10 minutes, then 30 s: 3 labels in 60 s are 180 an hour."""
    question = asked_about(1).questions[0]
    choices = [said(question, "ann", "tie", second) for second in (0, 10, 30, 630, 660)]
    imported = [said(question, "ann", "tie", 661) | {"made_in": "argilla"}]
    assert labels_per_hour([*choices[::-1], *imported]) == pytest.approx(180.0)
    assert labels_per_hour(choices[:1]) is None
    assert labels_per_hour([choices[0], choices[4]]) is None
