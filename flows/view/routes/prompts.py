"""The addresses of a prompt, of a completion's tokens, of the judges, and of what another judge would change."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response

from flows.view.pages import judges as judges_page
from flows.view.pages import prompt as prompt_page
from flows.view.pages import rejudged as rejudged_page
from flows.view.pages import tokens as tokens_page
from flows.view.rendering import Page
from flows.view.routes.numbers import MOST
from flows.view.site import Site

InPath = Annotated[int, Path(ge=0, le=MOST)]
Asked = Annotated[int | None, Query(ge=0, le=MOST)]


def add(app: FastAPI, site: Site, answer: Callable[[Page], Response]) -> None:
    """Adds the addresses to the application."""

    @app.get("/run/{name}/prompt/{prompt}")
    def prompt(
        name: str,
        prompt: str,
        round: Asked = None,
        kind: str | None = None,
        candidate: Asked = None,
        markdown: bool = False,
    ) -> Response:
        return answer(prompt_page.page(site.run(name), prompt, round, kind, candidate, markdown=markdown))

    @app.get("/run/{name}/tokens/{round}/{kind}/{prompt}/{candidate}")
    def tokens(
        name: str,
        round: InPath,
        kind: str,
        prompt: str,
        candidate: InPath,
        start: Asked = None,
        by: str | None = None,
    ) -> Response:
        return answer(tokens_page.page(site.run(name), round, kind, prompt, candidate, start or 0, by))

    @app.get("/run/{name}/judges")
    def judges(
        name: str, round: Asked = None, kind: str | None = None, a: str | None = None, b: str | None = None
    ) -> Response:
        return answer(judges_page.page(site.run(name), round, kind, (a, b)))

    @app.get("/run/{name}/rejudged/{judge}")
    def rejudged(name: str, judge: str, round: Asked = None) -> Response:
        return answer(rejudged_page.page(site.run(name), judge, round))
