"""The routes of prompts that are tried on two checkpoints, and of what people prefer of the answers."""

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Form, Request
from fastapi.responses import RedirectResponse, Response

from flows.view import tried_answers
from flows.view.addresses import served
from flows.view.pages import attempt
from flows.view.rendering import Page
from flows.view.routes.labels import remember, remembered
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.trial_engines import EngineName
from flows.view.trials import Asked, Trial, Trials
from flows.workers.trial import TrialSettings
from pipeline.errors import ConfigError, RondoError
from storage.errors import StoreError
from storage.tables.shared_values import Labels

_GONE = "this prompt is not known any more, as rondo view was started again, or many were tried since: try it again"

_OTHER_FORM = "this form is of another start of rondo view: open the page again, and try once more"


def add(app: FastAPI, site: Site, answer: Callable[[Page, int], Response], guard: Guard, trials: Trials) -> None:
    """Adds them to the application."""
    all_labels = Labels(site.store)

    @app.get("/run/{name}/try")
    def shown(request: Request, name: str, trial: str = "") -> Response:
        found, problem = _tried(trials, name, trial) if trial else (None, None)
        person = remembered(request)
        page = attempt.page(site, site.run(name), found, problem=problem, labeller=person)
        return answer(page, 404 if problem else 200)

    @app.post("/run/{name}/try/label")
    def labelled(
        name: str,
        trial: Annotated[str, Form()],
        labeller: Annotated[str, Form()],
        choice: Annotated[tried_answers.TriedChoice, Form()],
        note: Annotated[str, Form()] = "",
        token: Annotated[str, Form()] = "",
    ) -> Response:
        if not guard.check_form(token):
            raise ConfigError(_OTHER_FORM)
        found, problem = _tried(trials, name, trial)
        if found is None:
            raise ConfigError(problem)
        tried_answers.keep(all_labels, found, labeller.strip(), choice, note)
        return remember(RedirectResponse(served("run", name, "try", trial=trial), 303), labeller.strip())

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
            raise ConfigError(_OTHER_FORM)
        opened = site.run(name)
        settings = TrialSettings(temperature, top_p, max_tokens, seed)
        asked = Asked((a, b), system if attempt.is_chat(opened) else None, user, settings, engine)
        try:
            trial = trials.begin(name, asked)
        except (RondoError, StoreError) as error:
            return answer(attempt.page(site, opened, asked=asked, problem=str(error)), 400)
        return RedirectResponse(served("run", name, "try", trial=trial.key), 303)


def _tried(trials: Trials, run: str, key: str) -> tuple[Trial | None, str | None]:
    """Returns a prompt that was tried on the page of this run; or why it is not shown."""
    found = trials.get(key)
    if found is None:
        return None, _GONE
    if found.run != run:
        return None, f"this prompt was tried on the page of run '{found.run}': look at it there"
    return found, None
