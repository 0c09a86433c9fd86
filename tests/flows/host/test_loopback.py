"""A proxy in the environment is never in the way to this machine itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.host.loopback import check_proxies, spare_loopback
from pipeline.errors import ConfigError
from support.unreliable_s3 import UnreliableS3

TESTS = Path(__file__).parents[2]
DEAD = "127.0.0.1:9"  # nobody listens there
HOSTS = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("said", "hosts"),
    [
        ({}, HOSTS),
        ({"NO_PROXY": ""}, HOSTS),
        ({"NO_PROXY": "example.org, localhost"}, "example.org,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, f"a,b,{HOSTS}"),
    ],
)
@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"])
def test_loopback_is_added_to_what_is_reached_directly(proxy: str, said: dict[str, str], hosts: str) -> None:
    environment = {proxy: f"http://{DEAD}", **said}
    spare_loopback(environment)
    assert environment == {proxy: f"http://{DEAD}", "no_proxy": hosts, "NO_PROXY": hosts}


@pytest.mark.parametrize(
    "environment", [{}, {"HTTP_PROXY": ""}, {"NO_PROXY": "a"}, {"ALL_PROXY": "x", "NO_PROXY": "*"}]
)
def test_nothing_is_added_where_nothing_is_in_the_way(environment: dict[str, str]) -> None:
    before = dict(environment)
    spare_loopback(environment)
    assert environment == before


def test_a_proxy_that_no_client_can_be_made_with() -> None:
    """Its address, which may hold a password, is not shown."""
    with pytest.raises(ConfigError, match=r"ALL_PROXY names a proxy of the kind socks4://, which") as refused:
        check_proxies({"ALL_PROXY": "socks4://ann:secret@host:1"})
    assert "secret" not in str(refused.value)
    check_proxies(
        {"ALL_PROXY": "socks5h://host:1", "HTTP_PROXY": "host:3128", "https_proxy": "", "OTHER": "socks4://x"}
    )


CLIENTS = """
import asyncio, os, sys, urllib.request
import flows
from flows.prefect_api.server import healthy, using
from storage.log.store import Store

address = os.environ["AWS_ENDPOINT_URL"]
with urllib.request.urlopen(address) as answer:
    assert answer.status == 200
asked = []
import httpx, openai
from flows.prefect_api.server import prefect_api
from prefect.client.orchestration import PrefectClient

async def ask():
    for url in (address, address.replace("127.0.0.1", "localhost")):
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).status_code == 200
        try:
            await openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0).models.list()
        except openai.APIStatusError as error:  # it is no model's endpoint, but it has answered
            print(error.status_code)
        async with PrefectClient(url + "/api") as client:
            failed = await client.api_healthcheck()
            assert failed is None or "connect" not in str(failed).lower(), failed

asyncio.run(ask())
store = Store.open("s3://rondo/proxied")
store.objects.patience.seconds = 1.0
print(store.run_names())
"""


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_every_client_reaches_loopback(s3: UnreliableS3, kind: str) -> None:
    """Python's own, httpx, the ones of a judge's endpoint and of Prefect, and that of a bucket."""
    s3.reset()
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), f"{kind}://{DEAD}")
    if kind != "http":
        proxies = {"ALL_PROXY": f"{kind}://{DEAD}"}  # urllib knows no other
    environment = {
        **os.environ, **s3.environment, **proxies, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }  # fmt: skip
    command = [sys.executable, "-c", CLIENTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
