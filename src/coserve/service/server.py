"""The server: a port, a loop in a thread of its own, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from coserve.errors import CoserveError, InvalidRequest
from coserve.service.protocol import BoundedProtocol
from coserve.service.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from coserve.engine import Engine, EngineConfig
    from coserve.service.jobs import Training
    from coserve.service.service import Service

BACKLOG = 2048
STANDARD_INPUT = 0


class AddressError(CoserveError):
    """The server cannot listen where it was told to."""

    code = "address_unavailable"


class Server:
    """Serves one engine over HTTP in a background thread, so that the caller's thread is free for a display.

        server = Server(settings, lambda: Engine.from_pretrained("builtin"))
        server.start()          # returns when requests are answered
        print(server.url, server.new_key)
        server.wait()           # until request_stop(), stop() or a failure
        server.stop()           # lets running replies end, keeps running jobs for the next start

    `url`, `engine` and `new_key` (the key made at first start, else None; show it once) hold from `start` on.
    """

    engine: Engine
    url: str
    new_key: str | None

    def __init__(self, settings: Settings, engine_factory: Callable[[], Engine], *, training: Training | None = None):
        self._settings = settings
        self._engine_factory = engine_factory
        self._training = training
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._service: Service | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Take the port, load the engine, serve.

        Raises: `AddressError` if the port is taken (before anything is loaded); `DatabaseError`, `Conflict`;
        whatever the engine's factory raises.
        """
        listener = listen(self._settings.host, self._settings.port)
        try:
            self._settings.make_directories()
            with ThreadPoolExecutor(max_workers=1) as meanwhile:
                application = meanwhile.submit(self._application)  # slow to import
                self.engine = self._engine_factory()
        except BaseException:
            listener.close()
            raise
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        app = application.result()(self.engine)
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            lifespan="off",  # `_serve` opens the service itself: uvicorn would swallow what goes wrong
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            timeout_keep_alive=65,
            timeout_graceful_shutdown=max(1, round(self._settings.drain_seconds)),
            backlog=BACKLOG,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(config, app.state.service, listener), name="coserve-http", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self.stop()
            raise self._failure

    def _application(self) -> Callable[[Engine], Starlette]:
        """What makes the application of an engine."""
        from coserve.service.app import create_app
        from coserve.service.jobs import Training

        return partial(create_app, settings=self._settings, training=self._training or Training.real())

    def _run(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(self._serve(service, listener))
        except BaseException as error:
            self._failure = error
        finally:
            listener.close()
            self._ready.set()
            self._stopping.set()

    async def _serve(self, service: Service, listener: socket.socket) -> None:
        assert self._uvicorn is not None
        async with service:
            self.new_key = service.new_key
            self._service = service
            serving = asyncio.create_task(self._uvicorn.serve(sockets=[listener]))
            while not self._uvicorn.started and not serving.done():
                await asyncio.sleep(0.005)
            gc.collect()
            gc.freeze()  # what is there now stays: looking through it again and again would hold up replies
            self._ready.set()
            await serving

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is time to stop; False if `timeout` seconds passed before."""
        return self._stopping.wait(timeout)

    def request_stop(self) -> None:
        """Make `wait` return. Safe in a signal handler."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the files of tiers and upstreams again; what is wrong is logged. Safe in a signal handler."""
        if self._service is not None:
            with contextlib.suppress(InvalidRequest):
                self._service.reload()

    def stop(self) -> None:
        """Accept nothing new, let running replies end for `drain_seconds`, then stop the engine. Idempotent.

        Jobs stay "running" in the database: the next start goes on with them.
        """
        self._stopping.set()
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.engine.shutdown()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `AddressError`."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise AddressError(f"Cannot listen on {host}: {error.strerror or error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"Port {port} on {host} is taken by another program. Stop it, or choose another with --port."
            ) from None
        raise AddressError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from None
    return listener


def run_server(
    settings: Settings,
    model: str | Path = "builtin",
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: str = "auto",
    name: str | None = None,
    config: EngineConfig | None = None,
    on_ready: Callable[[Server], None] | None = None,
) -> None:
    """Load a model and serve it until SIGTERM or Ctrl-C: `serve` with the real engine."""
    with kept_for_good():
        from coserve.engine import Engine

    def load() -> Engine:
        return Engine.from_pretrained(
            model, home=settings.directory, device=device, dtype=dtype, weights=weights, name=name, config=config
        )

    serve(Server(settings, load), on_ready=on_ready)


def serve(server: Server, *, on_ready: Callable[[Server], None] | None = None) -> None:
    """Run a server until SIGTERM or Ctrl-C; SIGHUP reads tiers and upstreams again. `on_ready`: called once it answers.

    For the main thread.
    """
    with stopping_on_signals(server), reloading_on_hangup(server):
        server.start()
        try:
            if on_ready is not None:
                on_ready(server)
            server.wait()
        finally:
            server.stop()


@contextlib.contextmanager
def kept_for_good() -> Iterator[None]:
    """What the block makes stays: the garbage collector looks through it neither meanwhile nor afterwards."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def stopping_on_signals(server: Server) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT ask the server to stop; a second one has its usual effect."""
    previous: dict[int, Any] = {}

    def ask(number: int, _frame: object) -> None:
        signal.signal(number, previous[number])
        server.request_stop()

    for wanted in (signal.SIGTERM, signal.SIGINT):
        previous[wanted] = signal.signal(wanted, ask)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether standard input is a terminal that is still open."""
    return os.isatty(STANDARD_INPUT)


@contextlib.contextmanager
def reloading_on_hangup(server: Server) -> Iterator[None]:
    """Within the block SIGHUP makes the server read its tiers and upstreams again, on systems that have it.

    The same signal says that the terminal was closed: then a server that was started there stops.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None:
        yield
        return
    from_terminal = _has_terminal()

    def hear(_number: int, _frame: object) -> None:
        if from_terminal and not _has_terminal():
            server.request_stop()
        else:
            server.reload()

    previous = signal.signal(hangup, hear)
    try:
        yield
    finally:
        signal.signal(hangup, previous)
