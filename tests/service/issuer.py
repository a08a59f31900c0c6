"""A stand-in for an OpenID Connect issuer: real keys, real signatures, real HTTP on this machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

AUDIENCE = "coserve"


class StandIn:
    """Signs tokens, and tells its public keys; `requests` are the paths that were asked for."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": RSAKey.generate_key(2048), "curve": ECKey.generate_key("P-256")}
        self.requests: list[str] = []
        self.called: str | None = None  # what it says that it is called; None: as it is
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def token(self, *, kid: str | None = "first", alg: str = "RS256", key: Any = None, **claims: Any) -> str:
        """A token that is valid but for what is said; a claim that is None is left out."""
        now = int(time.time())
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 60, **claims}
        header = {"alg": alg, **({"kid": kid} if kid else {})}
        present = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(header, present, key or self.keys[kid or "first"], algorithms=[alg])

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(issuer) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                body = json.dumps(issuer._said(self.path)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _said(self, path: str) -> Any:
        if path == "/keys":
            strange = [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "other"}, {"kty": "RSA", "kid": "broken"}]
            return {"keys": [*strange, *(key.as_dict(private=False, kid=kid) for kid, key in self.keys.items())]}
        return {"issuer": self.called or self.url, "jwks_uri": f"{self.url}/keys"}


@contextmanager
def stand_in() -> Iterator[StandIn]:
    issuer = StandIn()
    try:
        yield issuer
    finally:
        issuer.stop()
