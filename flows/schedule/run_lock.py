"""Whether a run is being executed, as a scheduled run finds out: the store knows of this host, Prefect of others."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from flows.prefect_api.control import session_tag
from storage.log.lease import Holder, describe_holder, holder
from storage.log.run import Run


async def writer_of(run: Run) -> Holder:
    """Whether the process that has the run open still works on it; "unknown" where neither store nor Prefect says.

    Of a process on another host, as a container is, Prefect says so by the flow run that carries its session as a tag:
    killed, it is Crashed once its signs of life are missed.
    """
    session = run.session
    if session is None or run.state == "stopped":
        return "dead"
    here = holder(session)
    if here != "unknown":
        return here
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[session_tag(session.session)]))
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=tagged)
    if not found:
        return "unknown"
    return "dead" if all(each.state is not None and each.state.is_final() for each in found) else "alive"


def busy_message(run: Run) -> str:
    """Why a scheduled run leaves a run alone that somebody executes."""
    by = f" by {describe_holder(run.session)}" if run.session is not None else ""
    return f"run '{run.name}' is executed{by}, which adds its rounds; this one adds none"
