"""What every route of the administration starts from: the desk it works at, who asks, strict bodies."""

from __future__ import annotations

from typing import Protocol

from pydantic import ConfigDict
from starlette.requests import Request

from coserve.service.auth.door import key_of
from coserve.service.auth.keys import NewKey
from coserve.service.bodies import Body
from coserve.service.database import Database
from coserve.service.settings import Settings
from coserve.service.tables import KeyRow
from coserve.service.tiers import Tiers


class Keys(Protocol):
    """Where keys are made, and where it is heard that something has changed."""

    async def make(self, database: Database, new: NewKey, actor: str) -> tuple[str, KeyRow]: ...

    async def refresh(self, database: Database) -> None: ...


class Desk(Protocol):
    """What administration works with: a server's `Service`, or the command line's own."""

    @property
    def database(self) -> Database: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def tiers(self) -> Tiers: ...

    @property
    def settings(self) -> Settings: ...

    def reload(self) -> None: ...


class AdminBody(Body):
    """Fields that are not known are refused: a typo could open what was to stay closed."""

    model_config = ConfigDict(extra="forbid")


def desk_of(http: Request) -> Desk:
    desk: Desk = http.app.state.service
    return desk


def actor_of(http: Request) -> str:
    """Who asks, as the audit log names them."""
    return key_of(http).id
