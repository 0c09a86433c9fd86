"""Rounds on the Hub: a checkpoint as a model, its preferences as a dataset, each with its card.

A model is published whole: an adapter is merged with its base, which need not be on the Hub.
The token comes from the environment (``HF_TOKEN``) and is sent to the Hub alone. ``HF_ENDPOINT`` names another Hub.
"""

import os
import tempfile
from pathlib import Path

from flows.publish import What
from flows.publish.cards import model_card
from flows.publish.export import export_preferences
from flows.registry.checkpoints import local_policy
from pipeline.errors import ConfigError
from storage.log.run import Run
from storage.log.store import Store

Files = dict[str, Path | bytes]


def publish(store: Store, run: Run, round: int, repo: str, what: What, *, private: bool) -> list[str]:
    """Pushes a round to the Hub, and returns the addresses. Another call uploads only what has changed.

    Args:
        repo: NAMESPACE/NAME, or NAME in the namespace of the token's owner. Model and dataset have the same name.

    Raises:
        ConfigError: there is no token, or the Hub takes no repository of this name.
        PublishError: the Hub refuses or fails; what it has already stays.
        NotCommittedError, DataError: the round has no checkpoint, or no preferences.
        DamagedFileError, DroppedFileError: the files are not what was committed, or were pruned.
    """
    from flows.publish.hub import Hub

    hub = Hub(_token(), private)
    with tempfile.TemporaryDirectory(prefix="rondo-publish-") as scratch:
        kinds = [kind for kind in (What.dataset, What.model) if what in (kind, What.both)]
        # All that may be wrong with the round shows before the first request.
        found = {kind: _FILES[kind](store, run, round, Path(scratch)) for kind in kinds}
        names = {kind: hub.create(repo, kind) for kind in kinds}
        if What.model in kinds:
            card = model_card(run, round, names[What.model], names.get(What.dataset))
            found[What.model] |= {"README.md": card.encode()}
        return [hub.push(names[kind], kind, found[kind], f"Round {round} of run {run.name}") for kind in kinds]


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ConfigError("there is no token to publish with: set HF_TOKEN to one that may write")
    return token


def _dataset(store: Store, run: Run, round: int, scratch: Path) -> Files:
    export_preferences(store, run, round, scratch / "dataset")
    return _below(scratch / "dataset")


def _model(store: Store, run: Run, round: int, scratch: Path) -> Files:
    return _below(local_policy(store, run, round, scratch / "model"))


def _below(directory: Path) -> Files:
    return {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}


_FILES = {What.dataset: _dataset, What.model: _model}
