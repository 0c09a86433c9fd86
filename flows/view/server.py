"""``rondo view``: one process that listens until it is ended."""

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from flows.registry.catalog import existing_store, parse_source
from flows.view.addresses import served
from flows.view.app import make_app
from flows.view.security import Guard, is_loopback
from flows.view.site import Site
from flows.view.warm_up import warm_up
from pipeline.errors import ConfigError


def serve(
    source: str | None, root: str, *, host: str, port: int, open_browser: bool, say: Callable[[str], None]
) -> None:
    """Serves the pages of the runs under a root, until the process is ended.

    Args:
        source: RUN or RUN@ROUND, whose page is opened; None for the list of runs.
        host: the address to listen on. On one that other machines reach, a visitor needs a token.
        say: is told the address.

    Raises:
        ConfigError: there is no such root, or the port is taken.
        RunNotFoundError: there is no such run.
    """
    site = Site(existing_store(root))
    path, name = served(), None
    if source is not None:
        name, number = parse_source(source)
        site.run(name)
        path = served("run", name) if "@" not in source or number is None else served("run", name, "round", number)
    guard = Guard(host, None if is_loopback(host) else secrets.token_urlsafe(24))
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}{path}"
    if guard.token is not None:
        address += f"?token={guard.token}"
    say(f"rondo view: {address} (Ctrl-C ends it)")
    if open_browser:
        webbrowser.open(address)
    threading.Thread(target=warm_up, args=(site, name), name="warm-up", daemon=True).start()
    config = uvicorn.Config(make_app(site, guard), log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"--port {port} on {host} cannot be listened on: {error.strerror}; give another one, or 0 for any"
        ) from error
