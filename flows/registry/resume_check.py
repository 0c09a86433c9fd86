"""What the next round of a run reads, and whether it is all there: this is checked before any work starts."""

from collections.abc import Collection

from flows.registry.checkpoints import base_of, is_adapter
from flows.registry.given_rounds import SAMPLER_BASE, SAMPLER_POLICY
from flows.registry.head import sampler_of, start_of
from storage.errors import CorruptEntryError, DamagedFileError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.verify.damage import Checked, problems_in
from storage.verify.verify import newest_good_round

CARRIED_STAGES = ("checkpoint", "probe", "optimizer", "ema", "eval_candidates", "eval_judgments")
"""The stages of a finished round that the next round reads; of round 0 they are the baseline of every round."""

STATES = ("optimizer", "ema")
"""Those that only the round after it reads, and only if its recipe says so."""

WEIGHT_STAGES = frozenset({"checkpoint", "optimizer", "ema", "update_state", SAMPLER_POLICY, SAMPLER_BASE})
"""The stages that are directories of weights and of the optimizer's state, which pruning takes; all others stay."""


def inputs_of_next_round(run: Run, number: int, staleness: int) -> list[FileRef]:
    """Lists what the round after ``number`` reads of that round, of round 0, and of the round that samples."""
    files = [*run.files(0, "prompts")]
    for round in sorted({0, start_of(run, number + 1)}):
        for stage in CARRIED_STAGES:
            files += run.files(round, stage)
    for round in sampling_rounds(run, number, staleness):
        files += run.files(round, "probe")
    files += weights_of_next_round(run, number, staleness)
    files += _compared_by_gate(run, number)
    return list({file.path: file for file in files}.values())


def _compared_by_gate(run: Run, number: int) -> list[FileRef]:
    """Lists the judgments of the best rounds that the gate of the round after ``number`` reads; none without one."""
    gate = run.round_entry(number).meta.get("gate")
    if gate is None:
        return []
    best, since = {measure["next_best"] for measure in gate["measures"]}, gate["since"]
    own = ("gate_judgments", "gate_text", "gate_tasks", "eval_judgments")
    places = [(round, stage) for round in sorted(best) for stage in own]
    baseline = ("gate_baseline_judgments", "gate_baseline_text", "gate_baseline_tasks")
    places += [(since, stage) for stage in ("gate_prompts", *baseline)]
    # A reward of before, judged anew under the conditions of since: as that round's baseline, or as the initial policy.
    for round in (one["next_best"] for one in gate["measures"] if one["name"] == "reward" and one["next_best"] < since):
        judged_anew = "initial_judgments" if round == 0 and since > 1 else "baseline_judgments"
        places += [(since, judged_anew), (since, "gate_eval_judgments")]
    return [file for round, stage in places for file in run.files(round, stage)]


def needed_after(run: Run, number: int) -> list[FileRef]:
    """Lists what the next round of this very run reads after round ``number``; empty if no round can follow it."""
    return inputs_of_next_round(run, number, staleness_of(run)) if run.files(number, "checkpoint") else []


def weights_of_next_round(run: Run, number: int, staleness: int, unread: Collection[str] = ()) -> list[FileRef]:
    """Lists what the round after ``number`` reads of those files that pruning takes.

    Args:
        unread: which of ``STATES`` it does not read.
    """
    start = start_of(run, number + 1)
    files = [file for stage in STATES if stage not in unread for file in run.files(start, stage)]
    for round in sampling_rounds(run, number, staleness):
        files += run.files(round, "checkpoint")
        if is_adapter(run.files(round, "checkpoint")):
            files += base_of(run, round)
    return files


def sampling_rounds(run: Run, number: int, staleness: int) -> list[int]:
    """Lists the rounds whose policies the round after ``number`` needs: where it starts, and the one that samples."""
    return sorted({start_of(run, number + 1), sampler_of(run, number + 1, staleness)})


def staleness_of(run: Run) -> int:
    """Says by how many rounds the policy that samples is behind the newest, as the recipe in the header has it."""
    recipe = run.header.get("recipe")
    return int(recipe.get("staleness", 0)) if isinstance(recipe, dict) else 0


def open_to_go_on(store: Store, name: str) -> Run:
    """Opens the run of that name.

    Raises:
        RunNotFoundError: there is no such run.
        CorruptEntryError: its log is damaged; the message names the newest good checkpoint, and the way on from it.
    """
    try:
        return store.run(name)
    except CorruptEntryError as error:
        try:
            remedy = way_on(store, store.run(name, intact_part=True))
        except CorruptEntryError:
            raise error from None
        raise CorruptEntryError(f"{error}; {remedy}") from error


def check_inputs(
    store: Store, run: Run, number: int | None = None, staleness: int | None = None, unread: Collection[str] = ()
) -> None:
    """Checks that a run can go on after round ``number``, or from where it stands: reads all that it would read.

    Args:
        staleness: that of the rounds that are to follow, if it is not the run's own.
        unread: which of ``STATES`` they do not read.

    Raises:
        DamagedFileError: a file is damaged; the message names the newest good checkpoint, and the way on from it.
        DroppedFileError: weights that the next round needs were removed on purpose.
    """
    staleness = staleness_of(run) if staleness is None else staleness
    finished = run.finished
    files = [file for entry in run.unfinished() for file in entry.files] if number is None else []
    last = number if number is not None else (finished[-1] if finished else None)
    if last is not None:
        files += inputs_of_next_round(run, last, staleness)
    dropped = run.dropped
    if last is not None:
        run.check_kept(weights_of_next_round(run, last, staleness, unread))
    checked: dict[str, Checked] = {}
    problems = list(problems_in(store, [file for file in files if file.path not in dropped], checked))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DamagedFileError(f"run '{run.name}' cannot go on: {problems[0]}{more}; {way_on(store, run, checked)}")


def way_on(store: Store, run: Run, checked: dict[str, Checked] | None = None) -> str:
    """Names the newest good checkpoint of a damaged run, and the command that goes on from it."""
    newest = newest_good_round(store, run, needed_after, {} if checked is None else checked)
    if newest is None:
        return "no round of it has all that a next one needs"
    return (
        f"the newest good checkpoint is that of round {newest}: 'rondo fork {run.name}@{newest} --name NEW' "
        "continues from it"
    )
