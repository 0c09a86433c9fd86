"""Addresses of pages, on the server and in an export."""

from flows.view.addresses import Exported, served


def test_an_address_keeps_what_is_given_and_leaves_out_what_is_not() -> None:
    assert served() == "/"
    assert served("run", "a/b c", "round", 3) == "/run/a%2Fb%20c/round/3"
    assert served("run", "a", q="x & y", page=None, role="") == "/run/a?q=x+%26+y"
    assert served("compare", run=["a", "b"]) == "/compare?run=a&run=b"
    assert served("run", "a", minimum=0) == "/run/a?minimum=0"


def test_an_export_has_the_pages_that_were_written_and_no_others() -> None:
    address = Exported({"/": "index.html", "/run/a/round/3": "round-3.html"})
    assert (address(), address("run", "a", "round", 3), address("run", "a", "ask")) == (
        "index.html",
        "round-3.html",
        None,
    )
