"""Administrators of an OpenID Connect issuer: their tokens open the administration, and nothing else.

A token is believed if a key of the issuer signed it (RS256 or ES256), and it is for this audience and this time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx

from coserve.errors import AuthenticationError, CoserveError, InvalidRequest, Unavailable
from coserve.service.auth.keys import PREFIX, Key
from coserve.service.auth.projects import Project
from coserve.service.auth.scopes import ADMIN, Forbidden
from coserve.service.tables import DEFAULT_PROJECT

ACTOR_PREFIX = "oidc:"
"""Before the subject, where the audit log names who did something."""
ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 30  # between the issuer's clock and this one
KEYS_SECONDS = 3600.0  # after which the issuer's keys are fetched again
PAUSE_SECONDS = 5.0  # between two attempts, whoever asks
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Issuer:
    """Whom to believe, and who of its people administer: subjects, verified e-mail addresses, or "claim=value"."""

    url: str
    audience: str
    admins: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.audience:
            raise InvalidRequest("OIDC needs an audience: COSERVE_OIDC_AUDIENCE.", param="oidc_audience")
        if not self.admins:
            raise InvalidRequest("OIDC needs at least one administrator: COSERVE_OIDC_ADMINS.", param="oidc_admins")
        url = httpx.URL(self.url)
        if url.scheme != "https" and url.host not in ("localhost", "127.0.0.1", "::1"):
            raise InvalidRequest(f"The OIDC issuer {self.url!r} must be an https address.", param="oidc_issuer")

    def administers(self, claims: dict[str, Any]) -> bool:
        return any(_matches(admin, claims) for admin in self.admins)


def _matches(admin: str, claims: dict[str, Any]) -> bool:
    claim, equals, wanted = admin.partition("=")
    if equals:
        value = claims.get(claim)
        return wanted in value if isinstance(value, list) else wanted == value
    verified = claims.get("email_verified") is True  # else anybody could have written it into their profile
    return admin == claims["sub"] or (verified and admin == claims.get("email"))


def is_token(text: str) -> bool:
    """Whether this can be a signed token; no API key of coserve's is one."""
    return not text.startswith(PREFIX) and text.count(".") == 2


class Oidc:
    """Turns an administrator's token into a `Key` that lasts for one request.

    Raises `InvalidRequest` where the package that checks signatures is missing.
    """

    def __init__(self, issuer: Issuer):
        try:
            import joserfc  # noqa: F401
        except ImportError:
            raise InvalidRequest("OIDC needs a package more: pip install 'coserve[oidc]'.", param="oidc") from None
        self._issuer = issuer
        self._keys = IssuerKeys(issuer.url)

    async def identify(self, token: str) -> Key:
        """Raises `AuthenticationError`, which never repeats the token; `Forbidden` for one who does not
        administer; `Unavailable` without the issuer's keys.
        """
        claims = await self._claims(token)
        if not self._issuer.administers(claims):
            raise Forbidden("This token is valid, but its subject is none of COSERVE_OIDC_ADMINS.")
        actor = f"{ACTOR_PREFIX}{claims['sub']}"[:200]
        return Key(actor, b"", Project(DEFAULT_PROJECT), scopes=frozenset({ADMIN}))

    async def _claims(self, token: str) -> dict[str, Any]:
        from joserfc import jws, jwt

        try:
            header = jws.extract_compact(token.encode("ascii", "replace")).headers()
            if header.get("alg") not in ALGORITHMS:
                raise AuthenticationError(f"The token must be signed with {' or '.join(ALGORITHMS)}.")
            key = await self._keys.find(header.get("kid"))
            claims = jwt.decode(token, key, algorithms=ALGORITHMS).claims
            self._registry().validate(claims)
        except CoserveError:
            raise
        except Exception as error:  # a stranger can write anything into a token
            raise AuthenticationError(f"This token is not valid: {_why(error)}.") from None
        return claims

    def _registry(self) -> Any:
        from joserfc.jwt import JWTClaimsRegistry

        return JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._issuer.url},
            aud={"essential": True, "value": self._issuer.audience},
            exp={"essential": True},
            sub={"essential": True},
        )


def _why(error: Exception) -> str:
    """In a word, without what the token says."""
    claim = getattr(error, "claim", None)
    if type(error).__name__ == "ExpiredTokenError":
        return "it has expired"
    if claim in ("iss", "aud", "exp", "nbf", "iat", "sub"):
        return f"its claim {claim!r} is missing or wrong"
    return "its signature or its form is wrong"


class IssuerKeys:
    """The keys that the issuer signs with: fetched when they are needed, and again for one that is not known."""

    def __init__(self, issuer: str):
        self._issuer = issuer
        self._keys: dict[str | None, Any] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: str | None) -> Any:
        """Raises `AuthenticationError` for a key that the issuer has not, `Unavailable` if it does not answer."""
        if not (self._fresh() and kid in self._keys):
            await self._renew(kid)
        if not self._fresh():
            raise self._away()
        if kid not in self._keys:
            raise AuthenticationError("This token is not valid: its issuer has no such key.")
        return self._keys[kid]

    def _fresh(self) -> bool:
        return time.monotonic() - self._fetched_at < KEYS_SECONDS

    async def _renew(self, kid: str | None) -> None:
        """Unless another request has done so while this one waited, or has tried just now."""
        async with self._fetching:
            now = time.monotonic()
            if (self._fresh() and kid in self._keys) or now - self._tried_at < PAUSE_SECONDS:
                return
            self._tried_at = now
            self._keys = _signing_keys(await self._fetch())
            self._fetched_at = now

    async def _fetch(self) -> Any:
        """The issuer's key set, from where its configuration says."""
        try:
            async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
                where = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
                said = (await http.get(where)).raise_for_status().json()
                if said["issuer"] != self._issuer:
                    raise ValueError
                return (await http.get(said["jwks_uri"])).raise_for_status().json()["keys"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            raise self._away() from None

    def _away(self) -> Unavailable:
        return Unavailable(f"The OIDC issuer {self._issuer} does not tell its keys now; try again.")


def _signing_keys(said: Any) -> dict[str | None, Any]:
    """By id. Keys of other kinds, and for other uses, are left out."""
    from joserfc.errors import JoseError
    from joserfc.jwk import JWKRegistry

    keys: dict[str | None, Any] = {}
    for one in said if isinstance(said, list) else ():
        if not isinstance(one, dict) or one.get("kty") not in ("RSA", "EC") or one.get("use", "sig") != "sig":
            continue
        try:
            keys[one.get("kid")] = JWKRegistry.import_key(one)
        except (JoseError, ValueError, TypeError):
            continue
    return keys
