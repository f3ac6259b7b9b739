"""Who may ask: whoever has the API key or, where there is none, all but pages of other sites."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection

from segue.apps.server.bodies import RefusedError


class Callers:
    """Check who asks.

    Args:
        key: the API key; None asks for none.
        origins: of other sites whose pages may ask, or ``*`` for all.
    """

    def __init__(self, key: str | None, origins: Sequence[str]) -> None:
        self._key, self._origins = key, origins

    def check(self, caller: HTTPConnection, key: str) -> None:
        """Raise ``RefusedError`` for a caller who may not ask."""
        if self._key is None:
            self._check_origin(caller)
        elif not hmac.compare_digest(key.encode(), self._key.encode()):
            message = "send the API key: Authorization: Bearer KEY"
            raise RefusedError(401, message, WWW_Authenticate="Bearer")

    def _check_origin(self, caller: HTTPConnection) -> None:
        """Refuse pages of other sites, which any site could make ask a server without a key."""
        origin = caller.headers.get("origin")  # browsers send it, other clients do not
        own = origin is None or urlsplit(origin).netloc == caller.headers.get("host")
        if not own and origin not in self._origins and "*" not in self._origins:
            allowed = origin if "//" in str(origin) else "'*'"  # files have the origin null
            message = f"pages of {origin} may not ask: start with --allow-origin {allowed}"
            raise RefusedError(403, message)

    def let_read(self, app: FastAPI) -> None:
        """Let pages of the origins read answers and, added last, refusals."""
        if self._origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self._origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Segue-Seed", "Retry-After"],
            )
