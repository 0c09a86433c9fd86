"""The route of questions in SQL."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response

from flows.view.pages import ask as ask_page
from flows.view.questions import Form
from flows.view.rendering import Page
from flows.view.site import Site


def add(app: FastAPI, site: Site, answer: Callable[[Page, int], Response]) -> None:
    """Adds it to the application."""

    @app.get("/run/{name}/ask")
    def ask(
        name: str,
        sql: str = "",
        form: Annotated[Form, Query(alias="as")] = "table",
        offset: Annotated[int, Query(ge=0, le=10**12)] = 0,
    ) -> Response:
        page = ask_page.page(site.run(name), sql, form, offset)
        return answer(page, page.values["status"])
