"""What ``auto`` comes to on a machine: threads of each worker, and the sampler's precision."""

import os
from pathlib import Path
from typing import Any

import pytest

from flows.host import processor
from flows.host.allotment import Allotment, report_allotment
from flows.registry.recipes import parse_recipe
from flows.registry.resume import create_or_open, header, report_changes
from flows.round.provenance import recipe_hash
from pipeline.config.sampling import Precision
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.recipes import TINY
from support.tiny import tiny_llama

AUTO = "devices.cpu_threads=auto"
ON_RAY = ["sampling.engine=vllm", "cluster.sampler.replicas=2", "cluster.sampler.cpus=3"]


def recipe(*changes: str, **parts: Any) -> Recipe:
    return parse_recipe({**TINY, "devices": {}, **parts}, changes)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"source": "pretrained", "path": str(tiny_llama(tmp_path_factory.mktemp("policy")))}


@pytest.mark.parametrize(
    ("changes", "cores", "threads"),
    [
        ([], 8, (1, 1, 1)),  # a warm start, whose results are those of version 0.1.0
        (["devices.cpu_threads=3"], 8, (3, 3, 3)),
        ([AUTO], 8, (8, 8, 1)),  # in turn; VADER counts words
        ([AUTO, "mode=streaming"], 8, (4, 4, 1)),
        ([AUTO, "staleness=1"], 7, (3, 3, 1)),
        ([AUTO, "mode=streaming"], 1, (1, 1, 1)),
        ([AUTO, "devices.trainer_ranks=3"], 8, (8, 2, 1)),
        ([AUTO, "devices.trainer_ranks=3"], 2, (2, 1, 1)),
        ([AUTO, "mode=streaming", *ON_RAY], 8, (3, 8, 1)),
        ([AUTO, "mode=streaming", "devices.sampler=cuda"], 8, (1, 8, 1)),
        ([AUTO, "devices.sampler=cpu,cpu,cpu"], 8, (2, 8, 1)),
        ([AUTO, "mode=streaming", "devices.sampler=cpu,cpu"], 8, (2, 4, 1)),
    ],
)
def test_workers_in_turn_have_all_cores_and_others_a_share(
    changes: list[str], cores: int, threads: tuple[int, int, int]
) -> None:
    found = Allotment.of(recipe(*changes), cores).threads
    assert (found["sampler"], found["trainer"], found["judge"]) == threads


def test_a_judge_with_a_model_takes_its_turn_or_its_share(pretrained: dict[str, Any]) -> None:
    judged = {"judge": {"kind": "reward_model", "path": pretrained["path"]}}
    assert Allotment.of(recipe(AUTO, **judged), 6).threads == {"sampler": 6, "trainer": 6, "judge": 6}
    assert Allotment.of(recipe(AUTO, "mode=streaming", **judged), 6).threads == {"sampler": 2, "trainer": 2, "judge": 2}


def test_a_worker_is_given_numbers(pretrained: dict[str, Any]) -> None:
    asked = recipe("devices.trainer_ranks=2", policy=pretrained)
    given = Allotment.of(asked, 4)
    assert given.recipe(asked, "sampler").devices.threads == 4
    assert given.recipe(asked, "trainer").devices.threads == 2
    with pytest.raises(ValueError, match=r"devices\.cpu_threads is None: give a number"):
        _ = asked.devices.threads


def test_a_pretrained_policy_gets_all_cores_unless_the_recipe_or_its_run_says_a_number(
    tmp_path: Path, pretrained: dict[str, Any]
) -> None:
    """A run of 0.1.0 has recorded its 1, and goes on with it; neither's hash is the other's."""
    silent, one = recipe(policy=pretrained), recipe("devices.cpu_threads=1", policy=pretrained)
    assert (silent.cpu_threads, one.cpu_threads) == ("auto", 1)
    assert recipe_hash(silent) != recipe_hash(one)
    store = Store.open(tmp_path)
    store.create_run("old", header(one))
    assert create_or_open(store, "old", silent)[1].cpu_threads == 1
    store.create_run("new", header(silent))
    run, given = create_or_open(store, "new", one)
    said: list[str] = []
    report_changes(run, given, said.append)
    assert said == ["run 'new' goes on otherwise than it began: devices.cpu_threads: auto -> 1"]


def test_a_warm_start_hashes_as_it_did() -> None:
    assert recipe_hash(recipe()) == recipe_hash(recipe("devices.cpu_threads=1")) == recipe_hash(parse_recipe(TINY))
    assert recipe().hashed()["devices"]["cpu_threads"] == 1


def test_another_number_of_cores_is_said_and_nothing_fails() -> None:
    asked, said = recipe(AUTO, "sampling.engine=vllm"), list[str]()
    two, four = (Allotment.of(asked, cores, bfloat16=False) for cores in (2, 4))
    report_allotment(two, asked, None, said.append)
    report_allotment(two, asked, two.record(), said.append)
    report_allotment(four, asked, two.record(), said.append)
    report_allotment(Allotment.of(recipe(), 4), recipe(), Allotment.of(recipe(), 2).record(), said.append)
    first = "threads 2 for the sampler, 2 for the trainer, 1 for the judge"
    assert said == [
        f"auto: {first}, and samples in float32",
        f"auto: {first}, and samples in float32",
        "this session has threads 4 for the sampler, 4 for the trainer, 1 for the judge; "
        f"the one before had {first}: results change in the last bits",
    ]


@pytest.mark.parametrize(("began", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_run_that_goes_on_on_another_processor_samples_as_it_began(began: Precision, here: Precision) -> None:
    """Threads are those of the machine; the precision, with its tolerance, is the run's."""
    asked, said = recipe(AUTO, "sampling.engine=vllm"), list[str]()
    alone = Allotment.of(asked, 2, bfloat16=here == "bfloat16")
    kept = Allotment.of(asked, 2, bfloat16=here == "bfloat16", sampled_in=began)
    assert (alone.precision, kept.precision, kept.threads) == (here, began, alone.threads)
    own = kept.recipe(asked, "sampler")
    assert (own.sampler_precision, own.handover_tolerance) == (began, 0.2 if began == "bfloat16" else 1e-3)
    report_allotment(kept, asked, kept.record(), said.append)
    assert said[1:] == [
        f"samples stay in {began}, in which the run began, so that no round mixes two precisions; this machine would "
        f"take {here}: a fork with --set sampling.precision={here} does"
    ]
    report_allotment(alone, asked, kept.record(), said.append)
    assert len(said) == 3, "what stays as it would be needs no sentence"


@pytest.mark.parametrize(
    ("changes", "asked", "on_fast", "on_slow"),
    [
        ([], "float32", "float32", "float32"),  # a warm start, as in version 0.1.0
        ([AUTO], "auto", "bfloat16", "float32"),
        ([AUTO, "sampling.precision=float32"], "float32", "float32", "float32"),
        (["sampling.precision=auto"], "auto", "bfloat16", "float32"),
        (["sampling.precision=bfloat16"], "bfloat16", "bfloat16", "bfloat16"),
        ([AUTO, "sampling.engine=transformers"], "float32", "float32", "float32"),
        ([AUTO, "devices.sampler=cuda", "update.precision=bfloat16"], "bfloat16", "bfloat16", "bfloat16"),
        ([AUTO, "devices.sampler=cuda"], "float32", "float32", "float32"),
    ],
)
def test_samples_are_in_bfloat16_where_the_processor_has_it(
    changes: list[str], asked: str, on_fast: str, on_slow: str
) -> None:
    """The worker's recipe says which, and its tolerance follows."""
    given = recipe("sampling.engine=vllm", *changes)
    assert given.sampler_precision == asked
    for bfloat16, wanted in ((True, on_fast), (False, on_slow)):
        own = Allotment.of(given, 2, bfloat16=bfloat16).recipe(given, "sampler")
        assert own.sampler_precision == wanted
        assert own.handover_tolerance == (1e-3 if (wanted, own.update.precision) == ("float32",) * 2 else 0.2)


def test_the_plain_engine_has_no_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.precision 'bfloat16' does not go with sampling\.engine 'transf"):
        recipe("sampling.precision=bfloat16")


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ("flags\t\t: fpu avx2 fma", False),
        ("flags\t\t: fpu avx512_bf16 vaes", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("model name: bf16", False),
    ],
)
def test_the_processor_says_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, known: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{lines}\n")
    monkeypatch.setattr(processor, "_FLAGS", tmp_path / "cpuinfo")
    assert processor.multiplies_bfloat16() == known
    monkeypatch.setattr(processor, "_FLAGS", tmp_path / "none")
    assert not processor.multiplies_bfloat16()


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6)]
)
def test_a_containers_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(processor, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(6)))
    assert processor.available_cores() == cores
