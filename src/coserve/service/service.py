"""What the routes share: the engine, the database, the keys, the jobs; opened and closed together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from coserve.errors import ModelNotFound
from coserve.service.admission import Admission
from coserve.service.auth.keys import Key, KeyRing, open_key_ring
from coserve.service.database import Database, sqlite_url
from coserve.service.ids import now
from coserve.service.jobs import Jobs, Training
from coserve.service.ledger import Ledger
from coserve.service.limits import open_store
from coserve.service.lock import HomeLock
from coserve.service.mailbox import Mailbox
from coserve.service.metrics import Metrics
from coserve.service.settings import Settings
from coserve.service.tiers import Tiers, read_tiers, tiers_path
from coserve.service.upstreams.overflow import Overflow
from coserve.service.upstreams.pool import Upstreams, read_pool

if TYPE_CHECKING:
    from coserve.engine import Engine

T = TypeVar("T")
INLINE_CHARACTERS = 8_000  # up to here a prompt is encoded faster than a thread could take it over


class Service:
    """Everything behind the routes. Use it as `async with service:` on the loop that serves.

    `new_key` is the API key made at first start, to be shown once; None if there are keys already.
    """

    keys: KeyRing
    tiers: Tiers
    ledger: Ledger
    admission: Admission
    upstreams: Upstreams
    mailbox: Mailbox
    database: Database
    jobs: Jobs

    def __init__(self, engine: Engine, settings: Settings, training: Training | None = None):
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.started_at = now()
        self.new_key: str | None = None
        self.overflow = Overflow(engine.stats)
        self.sampling_defaults = sampling_defaults(engine)
        self._training = training
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Service:
        """Raises: `DatabaseError`, `Conflict` if the home directory is in use."""
        async with AsyncExitStack() as stack:
            self.settings.make_directories()
            home = self.settings.directory
            lock = HomeLock(home)
            lock.acquire()
            stack.callback(lock.release)
            self.database = Database(self.settings.database_url or sqlite_url(home / "coserve.db"))
            await self.database.open()
            stack.push_async_callback(self.database.close)
            self.keys, self.new_key = await open_key_ring(self.database, home, self.settings.api_key)
            self.tiers = Tiers(read_tiers(tiers_path(None, home)))
            limits = open_store(self.settings.limits_url)
            await limits.open()
            stack.push_async_callback(limits.close)
            self.upstreams = read_pool(self.settings.upstreams, home)
            await self.upstreams.open(limits, self.metrics)
            stack.push_async_callback(self.upstreams.close)
            self.ledger = Ledger(self.database, home / "ledger")
            await self.ledger.open()
            stack.push_async_callback(self.ledger.close)
            self.admission = Admission(
                self.tiers,
                limits,
                self.ledger,
                self.database,
                self.metrics,
                base_model=self.engine.name,
                context=self.engine.max_context,
            )
            self.mailbox = Mailbox(asyncio.get_running_loop())
            training = self._training or Training.real()
            self.jobs = Jobs(self.engine, self.database, self.settings, self.mailbox, training, self.tiers)
            await self.jobs.open()
            stack.push_async_callback(self.jobs.close)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def models(self, key: Key) -> list[str]:
        """The models that the key may use: the base model, those that its project has made, and upstreams'."""
        here = [name for name in self.engine.models() if self._may_use(key, name)]
        elsewhere = [name for name in self.upstreams.models() if name not in here]
        return [name for name in (*here, *elsewhere) if self.admission.opens(key, name)]

    def check_model(self, name: str, key: Key) -> None:
        """Raises `ModelNotFound` unless `name` is served, and to this key."""
        if name not in self.engine.models() or not self._may_use(key, name):
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")

    def _may_use(self, key: Key, name: str) -> bool:
        return name == self.engine.name or self.jobs.owner(name) in (None, key.project.id)

    async def offload(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`; in a thread if its input is long, so that the other streams go on meanwhile."""
        if size <= INLINE_CHARACTERS:
            return work(*args)
        return await asyncio.to_thread(work, *args)


def sampling_defaults(engine: Engine) -> dict[str, Any]:
    """What the model's `generation_config.json` says for requests that do not say it themselves."""
    config = getattr(engine, "generation_config", None)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
