"""The recipes that rondo brings along, as deployments that ``rondo up`` makes: paused, and one click from a run."""

import os

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron

from flows.prefect_api import HEARTBEAT_VARIABLE, heartbeat_seconds
from flows.registry.recipes import load_recipe
from flows.registry.shipped_files import shipped_recipes
from flows.schedule.deployments import SHIPPED_TAG, deployment_of, parameters
from flows.schedule.form import parameter_schema
from flows.schedule.scheduled_rounds import add_rounds
from storage.log.store import Store

_WHEN = "0 3 * * *"  # once somebody has switched its schedule on


async def ensure_shipped(pool: str, root: str) -> int:
    """Makes a deployment of each recipe for which the current server has none; people's own stay as they are.

    Args:
        pool: the work pool of this machine's worker.
        root: absolute directory or URI of the store.

    Returns:
        How many recipes there are.
    """
    store, recipes = Store.open(root), shipped_recipes()
    names = store.run_names()
    for name, path in recipes.items():
        found = await _find(name)
        if found is not None:
            await _renew_form(found, store.root, exists=name in names)
            continue
        recipe = load_recipe(path, files=False)  # its model need not be here before somebody runs it
        deployment = await deployment_of(
            parameters(recipe, name, store.root, 1), Cron(_WHEN), pool,
            {"env": {HEARTBEAT_VARIABLE: str(heartbeat_seconds())}, "working_dir": os.getcwd()}, exists=name in names,
        )  # fmt: skip
        deployment.paused, deployment.tags = True, [SHIPPED_TAG]
        deployment.description = f"{recipe.description}\n\nQuick run adds a round to the run '{name}' in {store.root}."
        await deployment.aapply()
    return len(recipes)


async def _find(name: str) -> DeploymentResponse | None:
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(f"{add_rounds.name}/{name}")
        except ObjectNotFound:
            return None


async def _renew_form(found: DeploymentResponse, root: str, *, exists: bool) -> None:
    """Has the form offer what the run can take: a command may have begun or deleted the run since."""
    if SHIPPED_TAG not in found.tags or found.parameters.get("root") != root:
        return
    schema = parameter_schema(found.parameters, exists=exists)
    if found.parameter_openapi_schema != schema:
        async with get_client() as client:
            await client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=schema))
