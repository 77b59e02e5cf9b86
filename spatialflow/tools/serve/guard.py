"""Who may ask, and the headers of every answer."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class SecurityHeaders:
    """Adds :data:`HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def check_sender(request: Request, token: str | None, hosts: frozenset[str] | None) -> None:
    """Refuse requests of other sites' pages, and those without the token.

    Args:
        request: a request.
        token: ASCII text that ``Authorization: Bearer`` has to be followed by; None: any request is
            answered.
        hosts: names under which the server may be asked for, so that no name that points to it by
            trickery gives a page access; None: any.

    Raises:
        HTTPException: 403 or 401.
    """
    host = request.headers.get("host", "")
    if hosts is not None and urlsplit(f"//{host}").hostname not in hosts:
        raise HTTPException(403, "The server does not answer under this name.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise HTTPException(403, "Pages of other sites may not ask this server.")
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not right:
        message = "A token is needed: the header Authorization: Bearer TOKEN."
        raise HTTPException(401, message, headers={"WWW-Authenticate": "Bearer"})
