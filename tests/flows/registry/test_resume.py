"""What a run may go on with: other places, other modes, other witnesses, and nothing that changes what comes out."""

from pathlib import Path

import pytest

from flows.host.progress import Display
from flows.registry.recipes import parse_recipe
from flows.registry.resume import check_goal, create_or_open, header, report_changes
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
    kept = ["update.schedule_over=run", "update.precision=float32"]
    assert recipe == parse_recipe(TINY, [*ELSEWHERE, *kept]), "its rounds end its schedule"
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


def test_a_recipe_of_0_1_0_that_left_the_learning_rate_out_means_what_it_meant(tmp_path: Path) -> None:
    """Its default was 1e-4, which the run has recorded; that of today is another one."""
    silent = {**TINY, "update": {"batch_size": 2, "token_budget": 512}}
    store, today = Store.open(tmp_path), parse_recipe(silent)
    assert today.update.learning_rate == 1e-6
    create_or_open(
        store, "old", parse_recipe(silent, ["update.learning_rate=1e-4", "sampling.handover_tolerance=1e-3"])
    )
    _, recipe = create_or_open(store, "old", today)
    assert (recipe.update.learning_rate, recipe.sampling.handover_tolerance) == (1e-4, 1e-3)
    with pytest.raises(ConfigError, match=r"update\.learning_rate: 0\.0001 -> 1e-06"):
        create_or_open(store, "old", parse_recipe(silent, ["update.learning_rate=1e-6"]))
    create_or_open(store, "other", parse_recipe(silent, ["update.learning_rate=2e-4"]))
    with pytest.raises(ConfigError, match=r"update\.learning_rate: 0\.0002 -> 1e-06"):
        create_or_open(store, "other", today)


def test_a_run_that_goes_on_on_another_device_keeps_its_precision(tmp_path: Path) -> None:
    """A GPU computes in bfloat16 if the recipe does not say: a run that began on a processor does not change over."""
    store, on_gpu = Store.open(tmp_path), parse_recipe(TINY, ["devices.trainer=cuda"])
    assert (parse_recipe(TINY).update.precision, on_gpu.update.precision) == ("float32", "bfloat16")
    for name, first, second in (("up", parse_recipe(TINY), on_gpu), ("down", on_gpu, parse_recipe(TINY))):
        create_or_open(store, name, first)
        _, recipe = create_or_open(store, name, second)
        assert recipe.update == first.update
        assert recipe.devices == second.devices
    with pytest.raises(ConfigError, match=r"update\.precision: float32 -> bfloat16"):
        create_or_open(store, "up", parse_recipe(TINY, ["devices.trainer=cuda", "update.precision=bfloat16"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sampling.temperature=0.7", r"sampling\.temperature is 0\.7: set it to 1, or set update\.exploration_weight"),
        ("sampling.top_p=0.9", r"sampling\.top_p is 0\.9"),
        ("update.reference=initial", r"update\.reference is 'initial'"),
        ("update.reference=ema", r"update\.reference is 'ema'"),
        ("preferences.replay.share=0.2", r"preferences\.replay\.reference is 'current': set it to original"),
    ],
)
def test_exploration_is_over_samples_of_the_reference(tmp_path: Path, change: str, words: str) -> None:
    """A new run is refused; one that an earlier version began goes on with what it does."""
    store, explores = Store.open(tmp_path), parse_recipe(TINY, ["update.exploration_weight=0.1", change])
    with pytest.raises(ConfigError, match=words):
        create_or_open(store, "new", explores)
    assert store.run_names() == []
    store.create_run("old", header(explores))
    assert create_or_open(store, "old", explores)[1] == explores
    create_or_open(store, "plain", parse_recipe(TINY, ["update.exploration_weight=0.1", "staleness=1"]))
    create_or_open(store, "none", parse_recipe(TINY, [change]))


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
