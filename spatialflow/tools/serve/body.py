"""Request bodies of limited size."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.exceptions import HTTPException
from starlette.requests import Request

DRAINED = 4
"""Up to so many times the limit a body that is too large is read: a client that is still sending
does not see an answer."""


async def read_body(request: Request, limit: int, drained: int | None = None) -> bytes:
    """The body of a request.

    Args:
        request: its body was not read yet.
        limit: in bytes.
        drained: how much of a larger body is read and thrown away; default: :data:`DRAINED` limits.

    Raises:
        HTTPException: 413, the body is larger.
        starlette.requests.ClientDisconnect: the client left.
    """
    drained = DRAINED * limit if drained is None else drained
    refusal = HTTPException(413, f"The picture has more than {limit / 1e6:.0f} MB.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > drained:
        raise refusal
    parts: list[bytes] = []
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > drained:
            break
        if received > limit:
            parts.clear()
        else:
            parts.append(part)
    if received > limit:
        raise refusal
    return b"".join(parts)


async def drain_body(request: Request, limit: int, seconds: float = 5.0) -> None:
    """Read a body and throw it away, so that the client sees why it is refused.

    Args:
        request: its body was not read yet.
        limit: in bytes; more is not waited for.
        seconds: the same.
    """
    with contextlib.suppress(HTTPException, asyncio.TimeoutError):
        await asyncio.wait_for(read_body(request, 0, drained=limit), seconds)
