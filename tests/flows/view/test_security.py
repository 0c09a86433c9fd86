"""Who the page answers: hosts, tokens and forms, and what no answer lets a browser do."""

import html
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.view.app import make_app
from flows.view.security import Guard, is_loopback
from flows.view.site import Site
from storage.log.store import Store
from support.finished_run import finished_run

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe\u2066\"'&{{7*7}}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    store = Store.open(tmp_path_factory.mktemp("root"))
    finished_run(store, text=lambda _round, prompt, index: HOSTILE + prompt * (100_000 if index == 3 else 1))
    return Site(store)


def client(site: Site, guard: Guard, host: str = "127.0.0.1") -> TestClient:
    return TestClient(make_app(site, guard), base_url=f"http://{host}", follow_redirects=False)


def test_only_names_of_this_machine_are_answered(site: Site) -> None:
    """A name of another site that leads to loopback, as by DNS rebinding, is not."""
    guard = Guard("127.0.0.1")
    for host in ("127.0.0.1", "localhost", "127.0.0.9", "[::1]", "localhost:7789"):
        assert client(site, guard, host).get("/").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"):
        assert client(site, guard, host).get("/").status_code == 421
    assert all(map(is_loopback, ("::1", "127.8.9.1", "localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "", "localhost.evil.example")))


def test_on_another_address_a_token_is_asked_for_once(site: Site) -> None:
    visitor = client(site, Guard("10.0.0.1", token="secret"), "rondo.example")
    assert visitor.get("/run/small").status_code == 401
    assert visitor.get("/static/page.css").status_code == 401
    assert visitor.get("/run/small?token=wrong").status_code == 401
    shown = visitor.get("/run/small?token=secret")
    assert (shown.status_code, shown.headers["location"]) == (303, "/run/small")
    assert "HttpOnly" in shown.headers["set-cookie"]
    assert "SameSite=strict" in shown.headers["set-cookie"]
    assert visitor.get("/run/small").status_code == 200


def test_a_write_of_another_site_is_refused(site: Site) -> None:
    visitor = client(site, Guard("127.0.0.1"))
    for method in ("POST", "PUT", "DELETE"):
        assert visitor.request(method, "/run/small", headers={"origin": "http://evil.example"}).status_code == 403
    assert visitor.post("/run/small", headers={"origin": "http://["}).status_code == 403
    assert visitor.post("/run/small", headers={"origin": "http://127.0.0.1"}).status_code == 405
    guard = Guard("127.0.0.1")
    assert [guard.check_form(given) for given in (None, "", "é", guard.form_token)] == [False, False, False, True]


@pytest.mark.parametrize("host", ["[::1", "]", "[", "127.0.0.1]"])
def test_a_host_that_is_none_is_refused(site: Site, host: str) -> None:
    for guard in (Guard("127.0.0.1"), Guard("10.0.0.1", token="secret")):
        answer = client(site, guard).get("/run/small?token=secret", headers={"host": host})
        assert answer.status_code == 421


def test_another_site_leads_here_but_asks_for_nothing_in_the_background(site: Site) -> None:
    """A picture or a frame of another site would make the machine work; a link that a person follows may."""
    visitor = client(site, Guard("127.0.0.1"))

    def status(**said: str) -> int:
        return visitor.get("/run/small", headers={f"sec-fetch-{name}": text for name, text in said.items()}).status_code

    for elsewhere in ("cross-site", "same-site"):
        assert status(site=elsewhere, mode="no-cors", dest="image") == 403
        assert status(site=elsewhere, mode="cors", dest="empty") == 403
        assert status(site=elsewhere) == 403
        assert status(site=elsewhere, mode="navigate", dest="iframe") == 403
        assert status(site=elsewhere, mode="navigate", dest="document") == 200
        assert status(site=elsewhere, mode="navigate") == 200
    assert status(site="same-origin", mode="cors", dest="empty") == 200
    assert status(site="none", mode="navigate", dest="document") == 200


@pytest.mark.parametrize("path", ["/", "/run/small", "/nothing", "/run/none", "/static/page.js"])
def test_no_answer_lets_a_browser_run_what_is_not_ours(site: Site, path: str) -> None:
    answer = client(site, Guard("127.0.0.1")).get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    if answer.headers["content-type"].startswith("text/html"):
        assert " style=" not in answer.text.partition("<svg")[0]
        assert "<script>" not in answer.text
        assert "onerror=" not in answer.text.replace("onerror=alert(1)&gt;", "")


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e%2fapp.py", "/static//etc/passwd", "/run/..%2f..%2fetc", "/run/%00",
        "/events/..%2f..",
    ],
)  # fmt: skip
def test_no_path_of_a_request_reaches_a_file(site: Site, path: str) -> None:
    answer = client(site, Guard("127.0.0.1")).get(path)
    assert answer.status_code in (400, 404)
    assert "import" not in answer.text


def test_what_goes_wrong_is_one_sentence(site: Site, tmp_path: Path) -> None:
    visitor = client(site, Guard("127.0.0.1"))
    assert "there is no run" in visitor.get("/run/none").text
    assert "tick two or three" in visitor.get("/compare?run=small").text
    assert "run 'small' is ticked more than once" in html.unescape(visitor.get("/compare?run=small&run=small").text)
    assert "there is no page /nothing" in visitor.get("/nothing").text
