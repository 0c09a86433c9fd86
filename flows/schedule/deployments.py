"""``rondo deploy``: a Prefect deployment of scheduled rounds for the workers of a pool.

The recipe is not among the deployment's parameters: it is in the run's own log. The form of Prefect's page has what can
change, see ``flows/schedule/form.py``. Workers find the code by its module's name, and no copy of it travels: they run
what is installed there, in an environment or an image.
"""

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.schedules import Schedule
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows.errors import ServerError
from flows.prefect_api import HEARTBEAT_VARIABLE, heartbeat_seconds, server_record
from flows.prefect_api.limits import ensure_gpu_limit, ensure_run_limits, needs_gpu
from flows.registry import DEFAULT_ROOT
from flows.registry.recipes import load_recipe
from flows.registry.resume import free_changes
from flows.registry.shipped_files import find_recipe, shipped_recipes
from flows.schedule import PoolType
from flows.schedule.form import parameter_schema
from flows.schedule.scheduled_rounds import add_rounds
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store

ENTRYPOINT = "flows.schedule.add_rounds"
"""The name of the flow in stored deployments: it stays, wherever the flow's file goes."""
SHIPPED_TAG = "ships-with-rondo"
_SETTINGS = "container_create_kwargs"  # what docker pools hand on to the engine


@dataclass(frozen=True)
class Deployed:
    """A deployment as the server has it.

    Attributes:
        id: its id on the server.
        name: its full name, as ``prefect deployment run`` takes it.
        pool: the work pool that its runs go to.
        kind: the pool's type.
        workers: workers of the pool that are online.
    """

    id: str
    name: str
    pool: str
    kind: str
    workers: int


async def deploy_rounds(
    recipe: Recipe,
    run: str,
    root: str,
    rounds: int,
    schedule: Schedule | None,
    *,
    pool: str,
    kind: PoolType | None,
    image: str | None,
) -> Deployed:
    """Creates or replaces the deployment of a run on the current server, with the pool and the limits that it needs.

    Args:
        recipe: the run's recipe.
        run: name of the run.
        root: absolute directory or URI of the store.
        rounds: how many rounds each of its runs adds.
        schedule: when it runs, in place of an earlier schedule; never by itself if None.
        pool: name of the work pool.
        kind: the pool's type; None takes the type of the pool, or process if there is no such pool yet.
        image: the image that containers are made of.

    Raises:
        ConfigError: the pool is of another type, or its containers would not have what they need.
        ServerError: the server refuses.
    """
    await check_name(run, root)
    kind = await _kind_of(pool, kind)
    variables = _job_variables(pool, kind, root, image)
    await ensure_pool(pool, kind)
    if "volumes" in variables:
        variables[_SETTINGS] = await _as_this_user(pool)
    await ensure_limits(recipe, run, root)
    given = parameters(recipe, run, root, rounds)
    deployment = await deployment_of(given, schedule, pool, variables, exists=True)
    try:
        made = await deployment.aapply()
    except (PrefectHTTPStatusError, RuntimeError) as error:
        raise ServerError(f"Prefect refuses the deployment of run '{run}': {error}") from error
    return Deployed(str(made), f"{add_rounds.name}/{run}", pool, kind, await _online(pool))


async def recipe_step(recipe: str, root: str = DEFAULT_ROOT) -> dict[str, Any]:
    """Reads a recipe in a build step of ``prefect.yaml``, which then need not repeat it, and creates its limits.

    Args:
        recipe: path of the recipe, relative to where ``prefect deploy`` is called.
        root: directory or URI of the store; ``RONDO_ROOT`` takes precedence.

    Returns:
        For placeholders: ``recipe`` (the name of one that rondo brings along, else its absolute path), ``name``,
        ``root`` (absolute), and ``directory``, where it was called.

    Raises:
        ConfigError: the recipe is wrong.
    """
    read, store = load_recipe(Path(recipe)), Store.open(os.environ.get("RONDO_ROOT") or root)
    await check_name(read.name, store.root)
    await ensure_limits(read, read.name, store.root)
    shipped = shipped_recipes().get(read.name) == find_recipe(Path(recipe)).absolute()
    return {
        "recipe": read.name if shipped else str(Path(recipe).absolute()),
        "name": read.name,
        "root": store.root,
        "directory": os.getcwd(),
    }


def parameters(recipe: Recipe, run: str, root: str, rounds: int) -> dict[str, Any]:
    """Returns the parameters of ``add_rounds``; if the run exists, what it may change of its recipe is in overrides."""
    store = Store.open(root)
    overrides = free_changes(store.run(run), recipe) if run in store.run_names() else {}
    return {"run": run, "rounds": rounds, "recipe": recipe.name, "overrides": overrides, "root": root}


async def deployment_of(
    given: dict[str, Any], schedule: Schedule | None, pool: str, variables: dict[str, Any], *, exists: bool
) -> RunnerDeployment:
    """Makes a deployment that is not on a server yet, and that has the name of the one run that it is for.

    Args:
        given: the parameters of ``add_rounds``.
        variables: how the pool's jobs are to be started.
        exists: whether the run exists, or will exist when anybody sees the form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a process pool could be served instead
        deployment = await add_rounds.ato_deployment(
            name=given["run"],
            schedule=schedule,
            paused=False,  # a deployment that was paused does not stay so
            parameters=given,
            enforce_parameter_schema=True,
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=pool,
            job_variables=variables,
        )
    deployment.entrypoint = ENTRYPOINT
    set_form(deployment, exists=exists)
    return deployment


def set_form(deployment: RunnerDeployment, *, exists: bool) -> None:
    """Gives a deployment the form of its run; that of Prefect, from the flow's signature, is for any run."""
    deployment._parameter_openapi_schema = ParameterSchema(**parameter_schema(deployment.parameters, exists=exists))


async def ensure_limits(recipe: Recipe, run: str, root: str) -> None:
    """Creates the concurrency limits that the run will ask for."""
    await ensure_run_limits(run, root)
    if needs_gpu(recipe):
        await ensure_gpu_limit()


async def ensure_pool(name: str, kind: PoolType) -> None:
    """Creates the work pool of this name, if there is none.

    Raises:
        ConfigError: there is such a pool, of another type.
        ServerError: Prefect does not know what a pool of this type needs.
    """
    await _kind_of(name, kind)
    template = await get_default_base_job_template_for_infrastructure_type(kind)
    if template is None:
        raise ServerError(f"Prefect has no template for a pool of type {kind}: {install(kind)}")
    if kind == "docker":
        _complete(template)
    async with get_client() as client:
        with contextlib.suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))


def _complete(template: dict[str, Any]) -> None:
    """Has a docker pool remove what each run leaves, a container with a volume, and take the containers' user."""
    variables = template["variables"]["properties"]
    variables["auto_remove"]["default"] = True
    # Prefect's template has it only if prefect-docker is installed, which only the worker needs.
    variables.setdefault(_SETTINGS, {"type": "object", "title": "Container Configuration", "default": {}})
    template["job_configuration"].setdefault(_SETTINGS, f"{{{{ {_SETTINGS} }}}}")


def install(kind: str) -> str:
    """Returns the command that installs what Prefect needs for a pool, and that keeps this version of Prefect."""
    return f"pip install prefect-{kind} prefect=={prefect.__version__}"


async def check_name(run: str, root: str) -> None:
    """Refuses to replace the deployment of a run of this name under another root, unless ``rondo up`` made it.

    Raises:
        ConfigError: there is such a deployment.
    """
    async with get_client() as client:
        try:
            existing = await client.read_deployment_by_name(f"{add_rounds.name}/{run}")
        except ObjectNotFound:
            return
    other = existing.parameters.get("root")
    if other != root and SHIPPED_TAG not in existing.tags:
        raise ConfigError(
            f"this server has a deployment of a run '{run}' under {other}, which this one would replace: give another "
            f"--name, or delete that one: prefect deployment delete {add_rounds.name}/{run}"
        )


async def _kind_of(pool: str, kind: PoolType | None) -> PoolType:
    """Returns the type of a pool; if there is none yet, the type that is asked for, or process.

    Raises:
        ConfigError: the pool is of another type than is asked for, or of one that rondo does not know.
    """
    async with get_client() as client:
        try:
            found: Any = (await client.read_work_pool(pool)).type
        except ObjectNotFound:
            return kind or "process"
    if found not in get_args(PoolType) or kind not in (None, found):
        wanted = kind or f"one of {', '.join(get_args(PoolType))}"
        raise ConfigError(f"the work pool '{pool}' is of type {found}, not {wanted}: give another --pool")
    return cast(PoolType, found)


def _job_variables(pool: str, kind: PoolType, root: str, image: str | None) -> dict[str, Any]:
    """Returns what differs from the pool's template for the jobs of this deployment.

    Raises:
        ConfigError: an image is missing or not wanted, or the jobs would keep their rounds in containers that vanish.
    """
    local = "://" not in root
    # Prefect reads it before it imports the flow. Jobs with less frequent signs of life would be taken for killed ones.
    env = {"env": {HEARTBEAT_VARIABLE: str(heartbeat_seconds())}}
    if kind == "process":
        if image is not None:
            raise ConfigError(f"the work pool '{pool}' runs processes, and --image is for containers: leave it out")
        # Relative paths of a recipe mean what they mean here.
        return {**env, "working_dir": os.getcwd()} if local or _background_server_is_ours() else env
    if image is None:
        raise ConfigError(f"the work pool '{pool}' runs containers: give --image, an image that has rondo in it")
    if not local:
        return {**env, "image": image}
    if kind != "docker":
        raise ConfigError(
            f"the root {root} is a directory of this machine, and the jobs of a {kind} pool would keep their "
            "rounds in containers that vanish: give a bucket, as --root s3://BUCKET/PREFIX"
        )
    # The container's user is the one who deploys; the image may not know that user, and have no home for it.
    env["env"]["HOME"] = "/tmp"  # noqa: S108  the container's
    return {**env, "image": image, "volumes": [f"{root}:{root}"]}


def _background_server_is_ours() -> bool:
    """Says whether the server is that of ``rondo up``, whose worker sees this machine's directories."""
    record = server_record.read()
    return record is not None and record.api == PREFECT_API_URL.value()


async def _as_this_user(pool: str) -> dict[str, Any]:
    """Returns how containers that share a directory are created: as the user who deploys, or as the pool says."""
    async with get_client() as client:
        variables = (await client.read_work_pool(pool)).base_job_template["variables"]["properties"]
    # A deployment's value replaces the pool's, which may ask for GPUs here.
    own = variables.get(_SETTINGS, {}).get("default") or {}
    return {"user": f"{os.getuid()}:{os.getgid()}", **own}


async def _online(pool: str) -> int:
    async with get_client() as client:
        online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        return len(await client.read_workers_for_work_pool(pool, worker_filter=online))
