"""What Prefect's UI shows of a run beside its tasks: the table of rounds, the place of the report, and the progress.

One task beside the run looks every few seconds at what the terminal's display shows, and at the newest table. It puts
that into the same few artifacts: one progress for the run, one for each kind of stage that lasts so long. The run never
waits for the UI, and an error there is logged once.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import Artifact, LinkArtifact, ProgressArtifact, TableArtifact
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.logging import get_logger

from flows.host.progress import Display

LOOK_SECONDS = 5.0  # each look of each run writes into the server's database
LAST_SECONDS = 10.0  # what the end of a run may wait for the UI


class Artifacts:
    """The artifacts of one run.

    Args:
        run: its name, which their keys carry.
        display: the display of the terminal.
        report: where the report will be: a path, or a key in a bucket.
        shown: whether there is a server that outlives the command; else nothing is done.
    """

    def __init__(self, run: str, display: Display, report: str, *, shown: bool) -> None:
        self._run, self._display, self._report, self._shown = run, display, report, shown
        self._slug = re.sub(r"[^a-z0-9]", "-", run.lower())
        self._table: list[dict[str, str]] = []
        self._published: dict[str, tuple[UUID, Any, str]] = {}
        self._silent = False

    def rounds(self, table: list[dict[str, str]]) -> None:
        """Takes the rows of the finished rounds, for the next look."""
        self._table = table

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """Keeps the artifacts up to date while the block runs, within a flow."""
        if not self._shown:
            yield
            return
        keeping = asyncio.create_task(self._keep_up())
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        await self._look(LinkArtifact(link=self._report, link_text=f"report of {self._run}"))

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self, report: LinkArtifact | None = None) -> None:
        """Publishes what has changed. Whatever goes wrong there is no fault of the run."""
        try:
            async with asyncio.timeout(LAST_SECONDS), get_client() as client:
                for name, (artifact, description) in self._current(report).items():
                    await self._publish(client, f"{name}-{self._slug}", artifact, description)
        except Exception as error:
            if not self._silent:
                get_logger("rondo").warning("Prefect's UI does not show the progress of the run: %r", error)
            self._silent = True

    def _current(self, report: LinkArtifact | None) -> Mapping[str, tuple[Artifact, str]]:
        done, total = self._display.rounds_done  # with round 0, which people do not count
        far = f"{max(done - 1, 0)} of {total - 1} rounds" if total > 1 else "preparing"
        found: dict[str, tuple[Artifact, str]] = {
            "progress": (ProgressArtifact(progress=100 * done / total), f"{self._run}: {far}")
        }
        for stage in self._display.stages:
            name = "stage-" + re.sub(r"[^a-z0-9]+", "-", stage.name)
            found[name] = (ProgressArtifact(progress=100 * stage.share), f"{stage.label}  {stage.note}".rstrip())
        for key in self._published.keys() - {f"{name}-{self._slug}" for name in found}:
            if key.startswith("stage-"):
                found[key.removesuffix(f"-{self._slug}")] = (ProgressArtifact(progress=100), self._published[key][2])
        if self._table:
            found["rounds"] = (TableArtifact(table=self._table), f"Rounds of run {self._run}")
        if report is not None:
            found["report"] = (report, f"Report of run {self._run}")
        return found

    async def _publish(self, client: PrefectClient, key: str, artifact: Artifact, description: str) -> None:
        data = await artifact.aformat()
        if key not in self._published:
            artifact.key, artifact.description = key, description
            self._published[key] = ((await artifact.acreate(client)).id, data, description)
            return
        known, before, described = self._published[key]
        if (data, description) != (before, described):
            await client.update_artifact(known, ArtifactUpdate(data=data, description=description))
            self._published[key] = (known, data, description)
