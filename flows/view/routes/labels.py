"""The addresses of the page that labels: its questions are asked for, and its choices are sent."""

from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import quote, unquote

from fastapi import FastAPI, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from flows.analysis.labelling import Choice
from flows.view.addresses import served
from flows.view.pages import label as label_page
from flows.view.rendering import Page
from flows.view.security import Guard
from flows.view.site import Site

_COOKIE = "rondo-labeller"
_A_YEAR = 365 * 24 * 3600
_CHOICES: dict[str, Choice] = {"left": "a", "right": "b", "tie": "tie", "skip": "skip"}


def remembered(request: Request) -> str:
    """Returns who labelled last in this browser; empty if nobody has."""
    return unquote(request.cookies.get(_COOKIE, "")).strip()


def remember(response: Response, labeller: str) -> Response:
    """Keeps in the browser who labels."""
    response.set_cookie(_COOKIE, quote(labeller), max_age=_A_YEAR, httponly=True, samesite="strict")
    return response


def add(app: FastAPI, site: Site, answer: Callable[[Page], Response], guard: Guard) -> None:
    """Adds them to the application."""
    desk = label_page.Desk(site.store)

    @app.get("/run/{name}/label")
    def label(
        request: Request, name: str, round: int | None = None, queue: str = "asked",
        labeller: str | None = None, question: str | None = None,
    ) -> Response:  # fmt: skip
        person = remembered(request) if labeller is None else labeller.strip()
        return answer(label_page.page(desk, site.run(name), round, queue, person, question))

    @app.post("/run/{name}/label")
    def choose(
        name: str, round: Annotated[int, Form()], labeller: Annotated[str, Form()], question: Annotated[str, Form()],
        choice: Annotated[Literal["left", "right", "tie", "skip", "undo"], Form()],
        queue: Annotated[str, Form()] = "asked", tag: Annotated[list[str], Form()] = [],  # noqa: B006  FastAPI copies it
        note: Annotated[str, Form()] = "", token: Annotated[str | None, Form()] = None,
    ) -> Response:  # fmt: skip
        if not guard.check_form(token):
            raise HTTPException(403, "the form is not of this rondo view, or of an earlier one: load the page again")
        labelling = desk.labelling(site.run(name), round, labeller, queue)
        asked = labelling.asked.question(question)
        if choice == "undo":
            labelling.withdraw(asked)
        else:
            labelling.choose(asked, _CHOICES[choice], tag, note)
        shown = question if choice == "undo" else None
        to = served("run", name, "label", round=round, queue=queue, labeller=labeller, question=shown)
        return remember(RedirectResponse(to, status_code=303), labeller)
