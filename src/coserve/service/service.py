"""What the routes share: the engine, the database, the keys, the jobs; opened and closed together."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from coserve.errors import InvalidRequest, ModelNotFound
from coserve.service.admission import Admission
from coserve.service.auth.keys import Key, KeyRing, open_key_ring
from coserve.service.auth.oidc import Issuer, Oidc
from coserve.service.auth.uses import KeyUses
from coserve.service.auth.watch import watch_keys
from coserve.service.batches.batches import Batches
from coserve.service.database import Database, sqlite_url
from coserve.service.ids import now
from coserve.service.jobs import Jobs, Training
from coserve.service.ledger import Ledger
from coserve.service.ledger.chips import ChipHours
from coserve.service.limits import RenewedStore, open_store
from coserve.service.lock import HomeLock
from coserve.service.mailbox import Mailbox
from coserve.service.metrics import Metrics
from coserve.service.settings import DATABASE, Settings
from coserve.service.tasks import cancel
from coserve.service.tiers import Tiers, read_tiers, tiers_path
from coserve.service.upstreams.config import read_upstreams_and_keys
from coserve.service.upstreams.overflow import Overflow
from coserve.service.upstreams.pool import Upstreams, read_pool

if TYPE_CHECKING:
    from coserve.engine import Engine

log = logging.getLogger("coserve.service")
T = TypeVar("T")
INLINE_CHARACTERS = 8_000  # up to here a prompt is encoded faster than a thread could take it over


class Service:
    """Everything behind the routes. Use it as `async with service:` on the loop that serves.

    `new_key` is the API key made at first start, to be shown once; None if there are keys already.
    """

    keys: KeyRing
    key_uses: KeyUses
    tiers: Tiers
    ledger: Ledger
    admission: Admission
    upstreams: Upstreams
    mailbox: Mailbox
    database: Database
    jobs: Jobs
    batches: Batches

    def __init__(self, engine: Engine, settings: Settings, training: Training | None = None):
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine)
        self.started_at = now()
        self.new_key: str | None = None
        self.overflow = Overflow(engine.stats)
        self.sampling_defaults = sampling_defaults(engine)
        self.oidc = open_oidc(settings)
        self._training = training
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Service:
        """Raises: `DatabaseError`, `Conflict` if the home directory is in use, `InvalidRequest` for bad tiers."""
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            self.settings.make_directories()
            home = self.settings.directory
            self.tiers = Tiers(read_tiers(tiers_path(self.settings.tiers, home)))
            self.upstreams = read_pool(self.settings.upstreams, home)
            lock = HomeLock(home)
            lock.acquire()
            stack.callback(lock.release)
            self.database = Database(self.settings.database_url or sqlite_url(home / DATABASE))
            await self.database.open()
            stack.push_async_callback(self.database.close)
            self.keys, self.new_key = await open_key_ring(self.database, home, self.settings.api_key)
            stack.push_async_callback(cancel, asyncio.create_task(watch_keys(self.keys, self.database)))
            self.key_uses = KeyUses(self.database)
            await self.key_uses.open()
            stack.push_async_callback(self.key_uses.close)
            limits = RenewedStore(open_store(self.settings.limits_url))
            await limits.open()
            stack.push_async_callback(limits.close)
            self.upstreams.open(limits, self.metrics)
            stack.push_async_callback(self.upstreams.close)
            self.ledger = Ledger(self.database, home / "ledger", keep_days=self.settings.usage_days)
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
            hours = ChipHours(self.database, self.engine.stats().chip, self._uses, self.settings.chip_price_nano)
            await hours.open()
            stack.push_async_callback(hours.close)
            self.mailbox = Mailbox(self._loop)
            training = self._training or Training.real()
            self.jobs = Jobs(
                self.engine, self.database, self.settings, self.mailbox, training, self.tiers, self._charge
            )
            await self.jobs.open()
            stack.push_async_callback(self.jobs.close)
            self.batches = Batches(self)
            await self.batches.open()
            stack.push_async_callback(self.batches.close)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def _uses(self) -> tuple[float, float, float]:
        """Seconds of the chip since the engine's start: inference, training, nothing."""
        stats = self.engine.stats()
        return stats.inference_seconds, stats.training_seconds, stats.idle_seconds

    async def _charge(self, project_id: str, billed: int) -> None:
        """What is billed beside all requests (nano-dollars)."""
        project = self.keys.project(project_id)
        if project is not None:
            await self.admission.charge(project, billed)

    def reload(self) -> None:
        """Read the files of tiers and upstreams again; safe in a signal handler, and on any thread.

        Raises `InvalidRequest`: then all stays as it was.
        """
        home = self.settings.directory
        try:
            tiers = read_tiers(tiers_path(self.settings.tiers, home))
            upstreams, keys = read_upstreams_and_keys(self.settings.upstreams, home)
        except InvalidRequest as error:
            log.error("upstreams and tiers stay as they were: %s", error.message)
            raise
        self.tiers.replace(tiers)
        self._loop.call_soon_threadsafe(self.upstreams.replace, upstreams, keys)
        log.info("tiers read: %s; upstreams: %s", ", ".join(tiers.tiers), ", ".join(upstreams.upstreams) or "none")

    def models(self, key: Key) -> list[str]:
        """The models that the key may use, if it or its tier names them: the base model, those that its project has
        made, and the ones of upstreams.
        """
        here = [name for name in self.engine.models() if self._may_use(key, name)]
        elsewhere = [name for name in self.upstreams.models() if name not in here and self.admission.is_open(name, key)]
        return [*here, *elsewhere]

    def check_model(self, name: str, key: Key) -> None:
        """Raises `ModelNotFound` unless `name` is served, and to this key."""
        if name not in self.engine.models() or not self._may_use(key, name):
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")

    def _may_use(self, key: Key, name: str) -> bool:
        own = name == self.engine.name or self.jobs.owner(name) in (None, key.project.id)
        return own and self.admission.is_open(name, key)

    async def offload(self, size: int, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`; in a thread if its input is long, so that the other streams go on meanwhile."""
        if size <= INLINE_CHARACTERS:
            return work(*args)
        return await asyncio.to_thread(work, *args)


def open_oidc(settings: Settings) -> Oidc | None:
    """Who checks administrators' tokens, if an issuer is set. Raises `InvalidRequest` for settings that cannot be."""
    if settings.oidc_issuer is None:
        return None
    return Oidc(Issuer(settings.oidc_issuer, settings.oidc_audience or "", settings.oidc_admins))


def sampling_defaults(engine: Engine) -> dict[str, Any]:
    """What the model's `generation_config.json` says for requests that do not say it themselves."""
    config = getattr(engine, "generation_config", None)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
