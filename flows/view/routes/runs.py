"""The pages of all runs, of one run, and of several over one another; and what is told while a run goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response, StreamingResponse

from flows.view.pages import run as run_page
from flows.view.pages import runs as runs_page
from flows.view.rendering import Page
from flows.view.site import Site
from storage.errors import StoreError

_POLL_SECONDS = 1.0


def add(app: FastAPI, site: Site, answer: Callable[[Page], Response]) -> None:
    """Adds the addresses of these pages."""

    @app.get("/")
    def runs() -> Response:
        return answer(runs_page.page(site))

    @app.get("/compare")
    def compare(run: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006  FastAPI copies it
        return answer(runs_page.compare(site, run))

    @app.get("/run/{name}")
    def run(name: str) -> Response:
        return answer(run_page.page(site.run(name)))

    @app.get("/events/{name}")
    def events(name: str, request: Request) -> StreamingResponse:
        site.run(name)
        return StreamingResponse(_events(site, name, request), media_type="text/event-stream")


async def _events(site: Site, name: str, request: Request) -> AsyncIterator[str]:
    """Tells, as server-sent events, of each change of a run: the browser then asks for its page again."""
    seen = ""
    while not await request.is_disconnected():
        try:
            state = await asyncio.to_thread(lambda: site.run(name).state)
        except StoreError:  # the run was deleted, or is damaged: its page says so when it is asked for
            return
        if state != seen:
            yield f"data: {state}\n\n"
            seen = state
        else:
            yield ": still there\n\n"
        await asyncio.sleep(_POLL_SECONDS)
