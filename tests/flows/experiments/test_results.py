"""What comes out of an experiment, by hand: two arms, two seeds, two prompts each."""

import json
from pathlib import Path

import pytest
import yaml

from flows.experiments.drawing import write_results
from flows.experiments.experiment import Plan, Variant, read_experiment
from flows.experiments.points import Point
from flows.experiments.results import results
from pipeline.errors import ConfigError
from support.recipes import TINY

STUDENT_1 = 12.7062
"""Student's t of two runs, to four digits."""
CLOSE = {"abs": 1e-4}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    content = {
        "name": "toy", "question": "Which?", "expected": "This one.", "recipe": "tiny/recipe.yaml", "seeds": [0, 1],
        "score": "vader", "table_judge": "praise", "at_kl": [1.0, 9.0], "arms": {"online": {}, "offline": {}},
    }  # fmt: skip
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "recipe.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_experiment(tmp_path / "toy.yaml")


def point(variant: Variant, seed: int, number: int, kl: float, vader: list[float], praise: list[float]) -> Point:
    """Two prompts, whose answers' log-ratios are a nat apart."""
    prompts = ("a", "b")
    scores = {"vader": dict(zip(prompts, vader, strict=True)), "praise": dict(zip(prompts, praise, strict=True))}
    log_ratios = {"a": kl - 0.5, "b": kl + 0.5} if number else {"a": 0.0, "b": 0.0}
    return Point(variant, seed, number, log_ratios, scores, scores)


@pytest.fixture
def points(plan: Plan) -> list[Point]:
    online, offline = plan.variants()
    return [
        point(online, 0, 0, 0.0, [0.0, 0.0], [0.0, 0.0]),
        point(online, 0, 1, 2.0, [1.0, 2.0], [1.0, 1.0]),
        point(online, 1, 0, 0.0, [0.0, 1.0], [0.0, 0.0]),
        point(online, 1, 1, 4.0, [2.0, 5.0], [1.0, 0.0]),
        point(offline, 0, 0, 0.0, [0.0, 0.0], [0.0, 0.0]),
        point(offline, 0, 1, 1.0, [0.5, 0.5], [0.0, 2.0]),
        point(offline, 1, 0, 0.0, [0.0, 1.0], [0.0, 0.0]),
        point(offline, 1, 1, 1.0, [0.5, 0.5], [1.0, 1.0]),
    ]


def test_means_over_seeds(plan: Plan, points: list[Point]) -> None:
    """Rewards 1.5 and 3.5: mean 2.5, half 12.7062 * sqrt 2 / sqrt 2 * 1; KL 2 and 4: 3."""
    means = {(mean.name, mean.number): mean for mean in results(plan.experiment, points).means}
    last = means["online", 1]
    assert (last.y.mean, last.y.half) == (2.5, pytest.approx(STUDENT_1, **CLOSE))
    assert (last.kl.mean, last.x, last.last, last.seeds) == (3.0, last.kl, True, (0, 1))
    assert last.judges == {"vader": 2.5, "praise": 0.75}
    assert not means["online", 0].last


def test_arms_at_equal_kl(plan: Plan, points: list[Point]) -> None:
    """At 1 online is half way of seed 0, (0.5, 1.0), and a quarter of seed 1, (0.5, 2.0): means 0.75 and 1.25.

    Offline is (0.5, 0.5) in both. Less by (0, 0.5) and (0, 1.5): means 0.25 and 0.75, so 0.5, half 12.7062 * 0.25.
    Of the two differences that are not 0, both are positive: p = 2 * 1/4. No arm reaches 9.
    """
    online, offline = results(plan.experiment, points).at_kl
    assert (online.kl, online.arm, online.y.mean, online.less, online.p) == (1.0, "online", 1.0, None, None)
    assert offline.y.mean == 0.5
    assert offline.less is not None
    assert (offline.less.mean, offline.less.half) == (pytest.approx(0.5), pytest.approx(STUDENT_1 / 4, **CLOSE))
    assert offline.p == pytest.approx(0.5)


def test_an_arm_at_its_own_last_kl(plan: Plan, points: list[Point]) -> None:
    """Offline ends at 1 in both seeds: what it is less there, with the other sign. Online never gets to 9."""
    (own,) = results(plan.experiment, points).at_own_kl
    assert (own.name, own.first) == ("offline", "online")
    assert (own.more.mean, own.more.half) == (pytest.approx(-0.5), pytest.approx(STUDENT_1 / 4, **CLOSE))
    assert own.p == pytest.approx(0.5)
    _, offline = plan.variants()
    far = point(offline, 1, 2, 9.0, [1.0, 1.0], [1.0, 1.0])
    assert results(plan.experiment, [*points, far]).at_own_kl == []


def test_who_wins_against_whom(plan: Plan, points: list[Point]) -> None:
    """By praise online wins one of two in seed 0 and ties one and loses one in seed 1: 1/2 and 1/4."""
    rates = {(win.name, win.against): win.rate for win in results(plan.experiment, points).wins}
    assert rates["online", "offline"].mean == pytest.approx(3 / 8)
    assert rates["offline", "online"].mean == pytest.approx(5 / 8)
    assert rates["online", "offline"].half == pytest.approx(STUDENT_1 / 8, **CLOSE)
    assert rates["online", "initial"].mean == pytest.approx((1 + 3 / 4) / 2)
    assert len(rates) == 6


def test_by_how_much_the_last_policies_differ(plan: Plan, points: list[Point]) -> None:
    """By vader (0.5, 1.5) and (1.5, 4.5) more: means 1 and 3, so 2, half 12.7062 * 1; all four positive: p = 2/16."""
    win = next(win for win in results(plan.experiment, points).wins if (win.name, win.against) == ("online", "offline"))
    assert (win.more.mean, win.more.half) == (pytest.approx(2.0), pytest.approx(STUDENT_1, **CLOSE))
    assert win.p == pytest.approx(2 / 16)


def test_a_seed_that_one_arm_lacks_is_left_out_of_comparisons(plan: Plan, points: list[Point]) -> None:
    found = results(plan.experiment, [one for one in points if (one.variant.name, one.seed) != ("offline", 1)])
    (_, offline) = found.at_kl
    assert offline.less is not None
    assert (offline.less.mean, offline.less.runs) == (pytest.approx(0.25), 1)
    assert next(win.rate.runs for win in found.wins if (win.name, win.against) == ("online", "offline")) == 1


def test_a_judge_that_did_not_judge(plan: Plan, points: list[Point]) -> None:
    experiment = plan.experiment.model_copy(update={"table_judge": "grammar"})
    with pytest.raises(ConfigError, match=r"score of 'grammar', and run 'toy-online-0' was judged by vader, praise"):
        results(experiment, points)


def test_files(plan: Plan, points: list[Point], tmp_path: Path) -> None:
    """The picture names its curves and ends; figures that are not known are null, and the same points give the same."""
    found = results(plan.experiment, [one for one in points if one.seed == 0])
    paths = write_results(plan.experiment, found, tmp_path / "out")
    assert [path.name for path in paths] == ["toy.svg", "toy.json", "toy.csv"]
    picture, figures, table = (path.read_text() for path in paths)
    assert "online ends at 2, 1.5; offline ends at 1, 0.5." in picture
    assert picture.count("KL to the initial policy, nats") == 1
    assert json.loads(figures)["means"][0]["y"] == {"mean": 0.0, "half": 0.0, "runs": 1, "prompts": 2}
    assert table.splitlines()[0].startswith("arm,name,number,seeds,last,x,y,low,high,kl")
    assert len(table.splitlines()) == 1 + 4
    again = write_results(plan.experiment, found, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
