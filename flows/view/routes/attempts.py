"""The routes of prompts that are tried on two checkpoints."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Form
from fastapi.responses import RedirectResponse, Response

from flows.view.addresses import served
from flows.view.pages import attempt
from flows.view.rendering import Page
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.trial_engines import EngineName
from flows.view.trials import Asked, Trials
from flows.workers.trial import TrialSettings
from pipeline.errors import ConfigError, RondoError
from storage.errors import StoreError

_GONE = "this prompt is not known any more, as rondo view was started again, or many were tried since: try it again"


def add(app: FastAPI, site: Site, answer: Callable[[Page, int], Response], guard: Guard, trials: Trials) -> None:
    """Adds them to the application."""

    @app.get("/run/{name}/try")
    def shown(name: str, trial: str = "") -> Response:
        found = trials.get(trial) if trial else None
        problem = _GONE if trial and found is None else None
        return answer(attempt.page(site, site.run(name), found, problem=problem), 404 if problem else 200)

    @app.post("/run/{name}/try")
    def begun(
        name: str,
        a: Annotated[str, Form()],
        b: Annotated[str, Form()],
        user: Annotated[str, Form()] = "",
        system: Annotated[str, Form()] = "",
        temperature: Annotated[float, Form(ge=0, le=5, allow_inf_nan=False)] = 1.0,
        top_p: Annotated[float, Form(gt=0, le=1)] = 1.0,
        max_tokens: Annotated[int, Form(ge=1, le=32_768)] = 256,
        seed: Annotated[int, Form(ge=0, le=2**31 - 1)] = 0,
        engine: Annotated[EngineName, Form()] = "transformers",
        token: Annotated[str, Form()] = "",
    ) -> Response:
        if not guard.check_form(token):
            raise ConfigError("this form is of another start of rondo view: open the page again, and try once more")
        opened = site.run(name)
        settings = TrialSettings(temperature, top_p, max_tokens, seed)
        asked = Asked((a, b), system if attempt.is_chat(opened) else None, user, settings, engine)
        try:
            trial = trials.begin(asked)
        except (RondoError, StoreError) as error:
            return answer(attempt.page(site, opened, asked=asked, problem=str(error)), 400)
        return RedirectResponse(served("run", name, "try", trial=trial.key), 303)
