"""A reward model from the preferences of any rounds: its data, its fit, and what is written beside its weights."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.analysis.sources import Source, find_rounds
from flows.host.new_directory import check_new, new_directory
from flows.registry.catalog import existing_store
from flows.registry.checkpoints import local_policy
from flows.report.judge_report import judge_report
from pipeline.errors import ConfigError
from pipeline.model.devices import check_device
from pipeline.reward_model.calibration import Calibration
from pipeline.reward_model.config import RewardTrainingConfig
from pipeline.reward_model.data import RatedAnswer, RewardPair, held_out_prompts, rated_answers, reward_pairs
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table

RECORD = "reward_model.json"
REPORT = "report.html"
_STAGES = ("prompts", "candidates", "judgments", "preferences")
_INITIAL = 0
_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class TrainedJudge:
    """A reward model in its directory, and the record that lies there as JSON."""

    directory: Path
    record: dict[str, Any]
    calibration: Calibration


def training_settings(**values: Any) -> RewardTrainingConfig:
    """Makes settings from the options of a command; ConfigError if one is out of its range."""
    try:
        return RewardTrainingConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = "".join(map(str, fault["loc"]))
        raise ConfigError(f"--{name.replace('_', '-')} {values[name]}: {fault['msg']}") from None


def train_judge(
    sources: Sequence[str],
    to: Path,
    base: str | None,
    config: RewardTrainingConfig,
    root: str,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainedJudge:
    """Fits a reward model to the preferences of rounds, and writes it to a new directory, as a whole or not at all.

    Args:
        sources: runs, all of whose rounds are taken, or RUN@ROUNDS, such as demo@3, demo@1-4 or demo@1,3-5.
        base: a checkpoint's directory or an id on the hub; by default the initial policy of the first run. A later
            policy has learned from the very preferences that the fit is measured on.

    Raises:
        ConfigError: a round does not exist or has no preferences, the base cannot serve, or ``to`` is there already.
        DataError: there are too few preferences.
        Others as for ``pipeline.reward_model.training.fit_reward_model``.
    """
    check_new(to)
    check_device("--device", config.device)
    store = existing_store(root)
    found = [find_rounds(store, source) for source in sources]
    pairs, ratings, lineage = _gather(store, found)
    held_out_prompts(pairs, config.held_out, config.seed)
    # Importing torch takes seconds: faults that can be found without it are raised before.
    from pipeline.reward_model.training import fit_reward_model

    with tempfile.TemporaryDirectory(prefix="rondo-") as scratch, new_directory(to) as staged:
        first = found[0].run
        source = base or str(local_policy(store, first, _INITIAL, Path(scratch)))
        report = fit_reward_model(source, pairs, ratings, config, staged, on_step=on_step)
        record = {
            "format": 1,
            "objective": config.objective,
            "settings": config.model_dump(mode="json"),
            "base": base or _checkpoint_of(first),
            "data": lineage,
            "libraries": {name: version(name) for name in _LIBRARIES},
            **asdict(report),
        }
        (staged / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        (staged / REPORT).write_text(judge_report(to.name, record, report.calibration), encoding="utf-8")
    return TrainedJudge(to, record, report.calibration)


def was_fitted_so(directory: Path, source: str, config: RewardTrainingConfig, root: str) -> bool:
    """Says whether a reward model was fitted to these rounds, as RUN@ROUNDS, of one run, and with these settings."""
    record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    found = find_rounds(existing_store(root), source)
    rounds = [(entry["run"], entry["round"]) for entry in record["data"]]
    return record["settings"] == config.model_dump(mode="json") and rounds == [
        (found.run.name, n) for n in found.rounds
    ]


def _gather(
    store: Store, sources: Sequence[Source]
) -> tuple[list[RewardPair], list[RatedAnswer], list[dict[str, Any]]]:
    """Collects the pairs and ratings of all rounds, each file once, and where they come from."""
    pairs: list[RewardPair] = []
    ratings: list[RatedAnswer] = []
    lineage = []
    seen: set[str] = set()
    for source in sources:
        prompt_files = source.run.files(0, "prompts")
        prompts = read_table(store, prompt_files)
        for number in source.rounds:
            files = {stage: source.run.files(number, stage) for stage in _STAGES[1:]}
            preferences = [file.sha256 for file in files["preferences"]]
            if seen.issuperset(preferences):
                continue  # a fork's round that its parent has given already
            seen.update(preferences)
            candidates, judgments, chosen = (read_table(store, files[stage]) for stage in _STAGES[1:])
            read = source.run.header["recipe"]["prompts"].get("read_special_tokens", False)
            pairs += reward_pairs(prompts, candidates, chosen, read_special_tokens=read)
            ratings += rated_answers(prompts, candidates, judgments, read_special_tokens=read)
            lineage.append({
                "run": source.run.name,
                "round": number,
                "files": _described({"prompts": prompt_files, **files}),
            })  # fmt: skip
    return pairs, ratings, lineage


def _described(files: dict[str, list[FileRef]]) -> dict[str, list[dict[str, Any]]]:
    return {
        stage: [{"path": file.path, "sha256": file.sha256, "rows": file.rows} for file in found]
        for stage, found in files.items()
    }


def _checkpoint_of(run: Run) -> dict[str, Any]:
    return {"run": run.name, "round": _INITIAL, "policy": run.entries(_INITIAL, "checkpoint")[-1].meta["policy"]}
