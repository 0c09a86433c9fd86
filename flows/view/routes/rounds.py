"""The pages of a round, and of the completions of one or all rounds."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response

from flows.view.filters import Filter
from flows.view.pages import completions as completions_page
from flows.view.pages import round as round_page
from flows.view.rendering import Page
from flows.view.routes.numbers import MOST
from flows.view.site import Site


def add(app: FastAPI, site: Site, answer: Callable[[Page], Response]) -> None:
    """Adds the addresses of these pages."""

    @app.get("/run/{name}/round/{number}")
    def round(name: str, number: Annotated[int, Path(ge=0, le=MOST)]) -> Response:
        return answer(round_page.page(site.run(name), number))

    @app.get("/run/{name}/completions")
    def completions(name: str, request: Request) -> Response:
        return answer(completions_page.page(site.run(name), Filter.parse(request.query_params.multi_items())))
