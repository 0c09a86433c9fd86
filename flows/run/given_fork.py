"""A fork of rounds as another judge sees them: their completions by reference, judged already, and trained on anew."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.registry.catalog import REJUDGMENTS
from flows.registry.checkpoints import base_of, is_adapter
from flows.registry.given_rounds import SAMPLER_BASE, SAMPLER_POLICY, SAMPLER_PROBE, given_to, sampler_policy
from flows.registry.recipes import parse_recipe
from flows.registry.resume import recipe_of
from flows.workers.references import hashes
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef, Key, key_of
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import NAMES_UNTIL
from storage.log.writer import Writer

Meta = dict[str, Any]
FIXED = ("seed", "staleness", "sampling.prompts_per_round", "sampling.shard_prompts")
"""Fields of the recipe that say which prompts each shard of a round has."""
_KEPT = ("policy", "candidates", "set_aside", "reason")
"""Of the entry of a shard's completions: all but when they were sampled, and what that took."""


def judged_recipe(parent: Run, round: int, name: str, changes: Sequence[str]) -> Recipe:
    """Returns the parent's recipe with the judge of this name, if it has judged all rounds up to this one.

    Raises:
        RunNotFoundError: nothing was judged under the name.
        ConfigError: some of it was not judged, round 0 is asked for, or a change is of the judge, or does not go with
            it.
    """
    annex = parent.annex(name)
    if round == 0:
        raise ConfigError(f"round 0 of run '{parent.name}' has no completions to train on: fork from a later round")
    for number in range(1, round + 1):
        missing = {shard for shard, entry in newest(parent, number, "candidates").items() if entry.files}
        missing -= newest(annex, number, REJUDGMENTS).keys()
        if missing:
            raise ConfigError(
                f"'{name}' has not judged all of round {number} of run '{parent.name}': "
                f"rondo rejudge {parent.name}@1-{round} --name {name}, with the same judge, judges the rest"
            )
    content = recipe_of(parent).model_dump(mode="json") | {"judge": annex.header["judge"]}
    recipe = parse_recipe(content, changes, files=False)
    if content_id(recipe.judge.scoring()) != annex.header["scoring"]:
        raise ConfigError(
            f"--set changes the judge, and '{name}' is what another one has said: leave that out, or run 'rondo "
            f"rejudge {parent.name}@1-{round}' with the judge that is meant, under another --name"
        )
    return recipe


def given_header(parent: Run, round: int, name: str) -> dict[str, Any]:
    """Returns what the fork's header says of it: also up to which entry the judgments count, as more may follow."""
    given = {"run": parent.name, "round": round, "judgments": name, "until": parent.annex(name).head}
    return {"given": given, NAMES_UNTIL: round}


def import_given_rounds(store: Store, run: Run, writer: Writer, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Names the completions that the run was given, what was judged of them, and the policies that sampled them.

    A fork that was killed meanwhile goes on where it stopped. What was judged since it was made is not taken, and that
    is said.

    Raises:
        DroppedFileError: the weights of a policy that sampled were removed on purpose.
    """
    given = given_to(run)
    if given is None or len(run.finished) > given.round:
        return
    parent = store.run(given.run, intact_part=True)
    annex = parent.annex(given.judgments)
    later: set[int] = set()
    for number in range(max(1, len(run.finished)), given.round + 1):
        for stage, files, meta in _sampler_commits(parent, number, recipe.staleness):
            parent.check_kept(files)
            writer.commit(Key(number, stage), files, meta)
        judged = newest(annex, number, REJUDGMENTS, given.until)
        if _hashes(judged) != _hashes(newest(annex, number, REJUDGMENTS)):
            later.add(number)
        for shard, entry in newest(parent, number, "candidates").items():
            kept = {name: entry.meta[name] for name in _KEPT if name in entry.meta}
            writer.commit(replace(key_of(entry), renewal=0), entry.files, kept)
            if entry.files:
                said = judged[shard]
                inputs = content_id([hashes(entry.files), [recipe.judge.hashed()], [said.meta["version"]]])
                writer.commit(Key(number, "judgments", shard, inputs), said.files, {})
    if later:
        say(
            f"run '{run.name}' keeps to the judgments that it was made with: '{given.judgments}' has judged rounds of "
            f"run '{given.run}' anew since ({', '.join(map(str, sorted(later)))}); 'rondo fork "
            f"{given.run}@{given.round} --name NEW --judgments {given.judgments}' trains on these"
        )


def newest(run: Run, number: int, stage: str, until: int | None = None) -> dict[int | None, Entry]:
    """Returns the newest entry of each shard of a stage, up to an entry of the log if its number is given."""
    entries: Iterable[Entry] = sorted(run.entries(number, stage), key=lambda entry: entry.number)
    return {key_of(entry).shard: entry for entry in entries if until is None or entry.number <= until}


def _hashes(entries: Mapping[int | None, Entry]) -> dict[int | None, list[str]]:
    return {shard: hashes(entry.files) for shard, entry in entries.items()}


def weights_of_given_rounds(parent: Run, last: int, staleness: int) -> list[FileRef]:
    """Lists the weights of the policies that sampled rounds 1 to ``last``, as far as the fork has to name them."""
    commits = [commit for number in range(1, last + 1) for commit in _sampler_commits(parent, number, staleness)]
    return [file for _, files, _ in commits for file in files]


def _sampler_commits(parent: Run, number: int, staleness: int) -> Iterator[tuple[str, Sequence[FileRef], Meta]]:
    """Yields what names the policy that sampled a round: stages, files, and what their entries say.

    There is nothing to name if the fork itself begins the round with that policy, as both share round 0. A later round
    is sampled by round 0, too, if all between failed the parent's gate: the fork need not start there.
    """
    if (known := sampler_policy(parent, number)) is not None:  # the parent was given them, too
        for stage in (SAMPLER_BASE, SAMPLER_PROBE):
            yield from ((stage, entry.files, {}) for entry in parent.entries(number, stage)[-1:])
        yield SAMPLER_POLICY, known.files, known.meta
        return
    sampled = newest(parent, number, "candidates").values()
    digest = next(entry.meta["policy"] for entry in sampled if entry.files)  # a shard that was skipped names none
    source = next(
        earlier
        for earlier in range(number - 1, -1, -1)
        if parent.entries(earlier, "checkpoint")[-1].meta["policy"] == digest
    )
    if source == 0 and number <= 1 + staleness:
        return
    files = parent.entries(source, "checkpoint")[-1].files
    if is_adapter(files):
        yield SAMPLER_BASE, base_of(parent, source), {}
    yield SAMPLER_PROBE, parent.entries(source, "probe")[-1].files, {}
    synced = parent.entries(source, "handover")[-1].meta
    noted: dict[str, Any] = {name: synced[name] for name in ("per_sequence", "noise") if name in synced}
    yield SAMPLER_POLICY, files, {"policy": digest, **noted}
