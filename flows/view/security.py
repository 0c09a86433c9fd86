"""Who may ask the page for what: this machine alone, unless a token is given, and no other site on its behalf.

A page of another site can make a browser send requests to loopback. It cannot read the answers, and it must not write:
so a request names a host that is ours (against DNS rebinding), and a write carries a token that only our pages know.
What it may do is to lead a person here; to ask for much in the background, as with pictures or frames, it may not.
"""

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Handler = Callable[[Request], Awaitable[Response]]

_COOKIE = "rondo-view"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send "null" as the origin of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Says whether an address, or the name localhost, is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Guard:
    """Lets requests through, or refuses them.

    Attributes:
        host: the address that the page listens on.
        token: what a visitor has to know; None on loopback, where none is needed.
        form_token: what a form of our own pages carries.
    """

    host: str
    token: str | None = None
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        """Answers a request, or refuses it."""
        response = self._refused(request) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    def check_form(self, given: str | None) -> bool:
        """Says whether a form came from one of our pages."""
        return given is not None and hmac.compare_digest(given.encode(), self.form_token.encode())

    def _refused(self, request: Request) -> Response | None:
        named = request.headers.get("host", "")
        host = _split(f"//{named}")
        if host is None or (is_loopback(self.host) and not is_loopback(host.hostname or "")):
            return PlainTextResponse(f"this page answers on {self.host} alone", status_code=421)
        if _is_made_by_another_site(request):
            return PlainTextResponse("only a link or an address that is opened leads here from elsewhere", 403)
        origin = request.headers.get("origin")
        from_elsewhere = origin is not None and ((sent := _split(origin)) is None or sent.netloc != named)
        if request.method != "GET" and from_elsewhere:
            return PlainTextResponse("only pages of rondo view may write", status_code=403)
        if self.token is None or self._knows(request.cookies.get(_COOKIE)):
            return None
        if self._knows(request.query_params.get("token")):
            response = RedirectResponse(request.url.path, status_code=303)
            response.set_cookie(_COOKIE, self.token, httponly=True, samesite="strict")
            return response
        return PlainTextResponse("open the address that rondo view printed: it has a token", status_code=401)

    def _knows(self, given: str | None) -> bool:
        return given is not None and self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _split(address: str) -> SplitResult | None:
    """Splits an address that anyone may have sent; None if it is none, such as one whose bracket is not closed."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _is_made_by_another_site(request: Request) -> bool:
    """Says whether a page of another site has sent a request in the background, as browsers tell."""
    if request.headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    in_frame = request.headers.get("sec-fetch-dest", "document") != "document"
    return in_frame or request.headers.get("sec-fetch-mode") != "navigate"
