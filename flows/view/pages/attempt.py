"""A prompt to two checkpoints side by side."""

from flows.analysis.labelling import LONGEST_NOTE
from flows.host.text import counted
from flows.registry.checkpoints import checkpoint_files
from flows.view.rendering import Page
from flows.view.site import OpenRun, Site
from flows.view.trial_engines import ENGINES, IDLE_SECONDS
from flows.view.trials import Asked, Trial
from flows.view.tried_answers import can_be_compared
from flows.workers.trial import TrialSettings
from storage.errors import DroppedFileError, NotCommittedError
from storage.queries.sql import Source, ask

_CONVERSATIONS = "SELECT count(messages) AS n FROM prompts"
_TOKENS = 256
"""The longest answer that is offered; a page takes longer ones."""


def is_chat(opened: OpenRun) -> bool:
    """Says whether the run's prompts are conversations."""
    (row,) = ask(opened.store, opened.run, _CONVERSATIONS, [Source("prompts")]).to_pylist()
    return bool(row["n"])


def page(
    site: Site,
    opened: OpenRun,
    trial: Trial | None = None,
    *,
    asked: Asked | None = None,
    problem: str | None = None,
    labeller: str = "",
) -> Page:
    """Shows the form, and a prompt that was tried.

    Args:
        asked: what the form begins with, if nothing was tried.
        problem: why that could not be tried.
        labeller: who may say which answer is better.

    Raises:
        NotCommittedError: the run has no prompts yet.
    """
    kept = _kept(opened)
    others = [f"{name}@latest" for name in site.store.run_names() if name != opened.name]
    values = {
        "trial": trial,
        "asked": trial.asked if trial else asked or _first(opened, kept),
        "chat": is_chat(opened),
        "checkpoints": [*(f"{opened.name}@{number}" for number in kept), *others],
        "pruned": counted(pruned, "round") if (pruned := len(opened.run.finished) - len(kept)) else None,
        "problem": problem,
        "engines": ENGINES,
        "idle_minutes": IDLE_SECONDS / 60,
        "labeller": labeller,
        "comparable": trial is not None and can_be_compared(trial),
        "longest_note": LONGEST_NOTE,
        "waiting": trial is not None and trial.state != "done",
    }
    return Page("attempt.html.j2", f"Try {opened.name}", values, run=opened.name, tab="Try")


def _kept(opened: OpenRun) -> list[int]:
    """Lists the finished rounds whose weights are there."""

    def has_weights(number: int) -> bool:
        try:
            opened.run.check_kept(checkpoint_files(opened.run, number))
        except (DroppedFileError, NotCommittedError):
            return False
        return True

    return [number for number in opened.run.finished if has_weights(number)]


def _first(opened: OpenRun, kept: list[int]) -> Asked:
    """Returns what the form begins with: the first and the newest checkpoint, sampled as in training."""
    sampling = opened.recipe.sampling
    first, last = (f"{opened.name}@{kept[0]}", f"{opened.name}@{kept[-1]}") if kept else ("", "")
    settings = TrialSettings(sampling.temperature, sampling.top_p, min(sampling.max_tokens, _TOKENS), 0)
    return Asked((first, last), "", "", settings)
