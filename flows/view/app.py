"""The server of the page: its parts, the files that all pages share, and what is said if something goes wrong."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from altair.utils import schemapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware

from flows.view.addresses import served
from flows.view.pictures import PICTURES, Mode
from flows.view.rendering import Page, render, static_file
from flows.view.routes import ask, attempts, labels, prompts, rounds, runs
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.trials import Trials
from pipeline.errors import RondoError
from storage.errors import DamagedFileError, NotCommittedError, RunNotFoundError, StoreError

_A_DAY = "max-age=86400"


def make_app(site: Site, guard: Guard) -> FastAPI:
    """Makes the application.

    Args:
        site: the runs that it shows.
        guard: who may ask it.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        trials.close()
        site.close()

    # The tests validate the charts; to do so on each page takes longer than all else.
    schemapi.DEBUG_MODE = False
    trials = Trials(site.store)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)
    answer = Answers(site, guard)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = static_file(name)
        if found is None:
            raise HTTPException(404)
        return Response(
            found[0], media_type=found[1], headers={"Cache-Control": _A_DAY if name == "charts.js" else "no-cache"}
        )

    @app.get("/chart/{key}/{mode}.svg")
    def picture(key: str, mode: Mode) -> Response:
        drawn = PICTURES.drawn(key, mode)
        if drawn is None:
            raise HTTPException(404)
        headers = {"Cache-Control": f"{_A_DAY}, immutable"}  # another chart has another key
        return Response(drawn.encode("utf-8", "backslashreplace"), media_type="image/svg+xml", headers=headers)

    runs.add(app, site, answer)
    rounds.add(app, site, answer)
    prompts.add(app, site, answer)
    labels.add(app, site, answer, guard)
    ask.add(app, site, answer)
    attempts.add(app, site, answer, guard, trials)
    _add_errors(app, site, answer)
    return app


class Answers:
    """Renders pages as answers."""

    def __init__(self, site: Site, guard: Guard) -> None:
        self._site, self._guard = site, guard

    def __call__(self, page: Page, status: int = 200) -> HTMLResponse:
        damages = self._site.damages(page.run)
        return HTMLResponse(render(page, served, form_token=self._guard.form_token, damages=damages), status)


def _add_errors(app: FastAPI, site: Site, answer: Callable[[Page, int], Response]) -> None:
    """Answers what goes wrong with a page that says it in a sentence, and what of its run is damaged."""

    def problem(request: Request, sentence: str, status: int, *, of_run: bool = False) -> Response:
        run = request.path_params.get("name")
        title = "Not found" if status == 404 else "Problem"
        # What is damaged of a run may be why; its other pages are there.
        run = run if of_run or site.damages(run) else None
        return answer(Page("problem.html.j2", title, {"sentence": sentence}, run=run), status)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        missing = f"there is no page {request.url.path}: the link may be of another version, or mistyped"
        return problem(request, missing if error.status_code == 404 else str(error.detail), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def mistyped(request: Request, error: RequestValidationError) -> Response:
        first: Any = error.errors()[0]
        place = "form" if first["loc"][0] == "body" else "address"
        return problem(
            request, f"{first['loc'][-1]} {first.get('input')!r} in the {place}: {first['msg'].lower()}", 400
        )

    @app.exception_handler(RunNotFoundError)
    @app.exception_handler(NotCommittedError)
    async def gone(request: Request, error: Exception) -> Response:
        return problem(request, str(error), 404, of_run=isinstance(error, NotCommittedError))

    @app.exception_handler(DamagedFileError)
    async def damaged(request: Request, error: Exception) -> Response:
        run = request.path_params.get("name", "RUN")
        remedy = f"'rondo verify {run}' checks every file of the run; put back a copy of this one, and look again"
        return problem(request, f"This page needs a file that is damaged: {error}. {remedy}", 500, of_run=True)

    @app.exception_handler(RondoError)
    @app.exception_handler(StoreError)
    async def known(request: Request, error: Exception) -> Response:
        return problem(request, str(error), 400)
