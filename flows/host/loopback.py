"""Loopback and proxies: what runs on this machine is never reached through one, whatever the environment says."""

import os
from collections.abc import Mapping, MutableMapping
from urllib.parse import urlsplit

from pipeline.errors import ConfigError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_KINDS = ("http", "https", "socks5", "socks5h")


def spare_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds loopback to the hosts that are reached directly, if the environment names a proxy.

    Both spellings are set: some libraries read one, some the other, and children inherit them.
    """
    if not any(name.lower() in _PROXIES and value for name, value in environment.items()):
        return
    said = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    direct = [host for host in map(str.strip, said.split(",")) if host]
    if "*" in direct:
        return
    hosts = ",".join(dict.fromkeys([*direct, *_LOOPBACK]))
    environment["no_proxy"] = environment["NO_PROXY"] = hosts


def check_proxies(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses a proxy that no client can be made with, not even one of loopback.

    Raises:
        ConfigError: names the variable and the kind; not the address, which may hold a password.
    """
    for name, value in environment.items():
        scheme = urlsplit(value).scheme if "://" in value else _KINDS[0]
        if name.lower() in _PROXIES and value and scheme.lower() not in _KINDS:
            raise ConfigError(
                f"{name} names a proxy of the kind {scheme}://, which cannot be used: give one of "
                f"{', '.join(f'{kind}://' for kind in _KINDS)}, or unset {name}"
            )
