"""What a run may go on with: other places, other modes, other witnesses, and nothing that changes what comes out."""

from pathlib import Path

import pytest

from flows.host.progress import Display
from flows.registry.recipes import parse_recipe
from flows.registry.resume import check_goal, create_or_open, report_changes
from flows.round.provenance import recipe_hash
from flows.run.start import resume
from pipeline.errors import ConfigError
from storage.log.store import Store
from support.finished_run import finished_run
from support.recipes import TINY

ELSEWHERE = [
    "devices.trainer=cuda:1",
    "cluster.address=node1:6379",
    "mode=streaming",
    "tracking.tensorboard=curves",
    "notifications.blocks=[slack-webhook/team]",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path)
    create_or_open(store, "begun", parse_recipe(TINY, ["update.schedule_over=run"]))
    return store


def test_a_run_goes_on_elsewhere_and_says_in_what_it_differs(store: Store) -> None:
    own = parse_recipe(TINY, ["update.schedule_over=run"])
    given = parse_recipe(TINY, [*ELSEWHERE, "rounds=9", "description=on the big machine", "update.schedule_over=run"])
    run, recipe = create_or_open(store, "begun", given)
    assert recipe == parse_recipe(TINY, [*ELSEWHERE, "update.schedule_over=run"]), "its rounds end its schedule"
    said: list[str] = []
    found = report_changes(run, recipe, said.append)
    assert said == [
        "run 'begun' goes on otherwise than it began: cluster.address: local -> node1:6379; devices.trainer: cpu -> "
        "cuda:1; mode: phased -> streaming; notifications.blocks: [] -> ['slack-webhook/team']; "
        "tracking.tensorboard: None -> curves"
    ]
    assert len(found) == len(ELSEWHERE)
    assert report_changes(run, own, said.append) == []
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("staleness=1", "staleness: 0 -> 1"),
        ("sampling.shard_prompts=3", "sampling.shard_prompts: 6 -> 3"),
        ("update.beta=0.2", "update.beta: 0.1 -> 0.2"),
        ("seed=8", "seed: 7 -> 8"),
        ("update.schedule_over=round", "update.schedule_over: run -> round"),
    ],
)
def test_what_changes_results_is_refused_and_the_rest_is_not_named(store: Store, change: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        create_or_open(store, "begun", parse_recipe(TINY, ["update.schedule_over=run", "mode=streaming", change]))
    assert f"run 'begun' was started with another recipe ({words})" in str(refused.value)


def test_no_round_comes_after_the_end_of_the_schedule(store: Store) -> None:
    run, recipe = create_or_open(store, "begun", parse_recipe(TINY, ["rounds=9", "update.schedule_over=run"]))
    check_goal(run, recipe, 2)
    check_goal(run, parse_recipe(TINY), 3)  # a schedule over each round has no end
    with pytest.raises(ConfigError, match=r"ends with round 2: to go on to round 3, begin a new run$"):
        check_goal(run, recipe, 3)
    with run.writer() as writer:
        writer.finish_round(0, {})
    with pytest.raises(ConfigError, match=r"to go on to round 3, fork it: rondo fork begun@0 --name NEW --rounds 3$"):
        check_goal(run, recipe, 3)


def test_fewer_rounds_than_the_recipes_are_taken_at_their_word(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    finished_run(store, rounds=2, recipe=parse_recipe(TINY, ["rounds=3"]))
    for rounds, changes in ((2, []), (None, ["rounds=2"]), (1, ["rounds=4"])):
        done = resume("small", rounds, store.root, changes, take_over=False, display=Display())
        assert done.message.startswith("run 'small' is finished: it has 2 rounds")


def test_a_run_keeps_its_description(tmp_path: Path) -> None:
    """To take the change and to show the old one would be worse than to refuse it."""
    store = Store.open(tmp_path)
    finished_run(store, rounds=2, recipe=parse_recipe(TINY))
    with pytest.raises(ConfigError, match=r"run 'small' keeps the description .*: leave out description='new'$"):
        resume("small", None, store.root, ["description=new"], take_over=False, display=Display())


def test_the_hash_of_a_recipe_is_that_of_what_results_depend_on() -> None:
    recipe = parse_recipe(TINY)
    assert recipe_hash(parse_recipe(TINY, [*ELSEWHERE[1:], "rounds=9"])) == recipe_hash(recipe)
    assert recipe_hash(parse_recipe(TINY, ["devices.cpu_threads=2"])) != recipe_hash(recipe)
    assert recipe_hash(parse_recipe(TINY, ["update.beta=0.2"])) != recipe_hash(recipe)
