"""The serving process: every room built once, bottom to top, and closed in reverse.

Started by the parent of `atlas serve` as `python -m atlas.app FD`. It may die at any time; the parent starts another.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from atlas import control
from atlas.bench import Runs
from atlas.dashboard import DashboardDeps, create_routes
from atlas.engine import Engine, RemoteEngine, load_engine
from atlas.errors import AtlasError, OperatorError, SettingsError
from atlas.gateway import GatewayDeps, check_readiness, create_app
from atlas.launch import Failed, Launch, Ready, Report, die_with, read_launch
from atlas.log import RECENT, configure_logging
from atlas.ralph import WorkerOptions, Workforce
from atlas.server import Server
from atlas.serving import EngineFactory, Models, Serving, control_handlers, held_directory, sandbox_socket
from atlas.settings import HOT, RemoteSettings, load_settings, value_of, with_value
from atlas.store import Journal, Store, open_journal, open_live, open_store

log = structlog.get_logger("atlas.app")

SWITCH_INTERVAL_S = 1e-4  # a busy Python thread delays the engine's by this at most; 5 ms is Python's default (contracts.md 1)
GC_THRESHOLDS = (10_000, 20, 20)  # a request makes some hundred objects and few cycles; Python's 700 is for small programs
REGISTRY_AGE_S = 1.0
SOCKET_PATH_BYTES = 107  # unix(7)
PRUNE_EVERY_S = 3600.0


def main(engine_factory: EngineFactory) -> None:
    """Serve as the last argument says. Never returns."""
    launch = read_launch(sys.argv)
    die_with(launch.parent_pid)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logging(launch.settings.log.level, form=launch.settings.log.format)
    status = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(serve(launch, engine_factory))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything that must be saved is; waiting for the threads of a model that is still loading would only take time.
    os._exit(status)


async def serve(launch: Launch, engine_factory: EngineFactory) -> int:
    """Serve until a signal says stop, or the engine cannot be made; the exit status."""
    try:
        store = open_ledger(launch)
    except OperatorError as error:
        report(launch, Failed(message=error.message))
        return 1
    async with AsyncExitStack() as stack:
        stack.callback(store.close)
        welcome(launch, store)
        live = open_live(launch.redis_url, source=store.usage.counts) if launch.redis_url else None
        if live is not None:
            stack.push_async_callback(live.close)
        journal = task_journal(launch, store)
        if journal is not None:
            stack.push_async_callback(journal.close)
        try:
            serving = Serving(launch, store, live, journal, make_engine=engine_factory)
        except OperatorError as error:
            report(launch, Failed(message=error.message))
            return 1
        draining = asyncio.Event()
        server = Server(web_app(serving, draining), draining, launch.settings.server)
        controller = await control.serve_control(socket.socket(fileno=launch.control_fd), control_handlers(serving))
        stack.callback(controller.close)
        stack.push_async_callback(serving.sandbox.close)
        tasks = [
            asyncio.create_task(load(serving, server)),
            asyncio.create_task(keep_house(serving)),
            asyncio.create_task(reconcile(journal)),
            asyncio.create_task(start_sandbox(serving)),
            asyncio.create_task(keep_workers(serving, server, draining)),
        ]
        # uvicorn raises the signal again once it has shut down; that must not end the process before the ledger is closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_settings, serving)
        await server.serve(sockets=[socket.socket(fileno=launch.http_fd)])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await serving.loaded.close()
        await serving.upstreams.close()
    return 0 if serving.failure is None else 1


def open_ledger(launch: Launch) -> Store:
    """The store; what an earlier process left open in it is settled.

    Raises:
        OperatorError: the ledger cannot be opened.
    """
    settings = launch.settings
    preset = os.environ.get("ATLAS_API_KEY") or None
    store = open_store(
        held_directory(launch), settings=settings.ledger, auth=settings.auth, limits=settings.limits, preset_key=preset
    )
    try:
        if interrupted := store.usage.interrupt_open():
            log.warning("requests.interrupted", count=len(interrupted))
    except AtlasError as error:
        store.close()
        raise OperatorError(error.message) from None
    return store


def task_journal(launch: Launch, store: Store) -> Journal | None:
    """The tasks of this server; None where nothing counts limits, and nothing could say who is next."""
    if not launch.redis_url:
        return None
    blobs = held_directory(launch).path / "blobs"
    return open_journal(store.tasks, launch.redis_url, blobs=blobs, lease_s=launch.settings.tasks.lease_s)


def web_app(serving: Serving, draining: asyncio.Event) -> Any:  # a Litestar application
    """Gateway and dashboard behind one gate."""
    settings = serving.settings
    deps = GatewayDeps(
        engine=lambda: serving.engine,
        loaded=serving.loaded,
        models=Models(serving),
        readiness=serving.readiness,
        store=serving.store,
        live=serving.live,
        journal=serving.journal,
        responses=serving.responses,
        settings=settings,
        server=settings.server,
        auth=settings.auth,
        anthropic=settings.anthropic,
        limits=settings.limits,
        queue=settings.queue,
        draining=draining,
        sandbox=serving.sandbox,
        workers=serving.workers,
        worker_socket=serving.worker_socket,
        sandbox_socket=str(sandbox_socket(serving.launch.data_dir) or ""),
        upstreams=serving.upstreams,
        adapter_folder=Path(serving.launch.data_dir) / "adapters",
    )
    pages = DashboardDeps(
        engine=deps.engine,
        loaded=serving.loaded,
        registry=serving.registry,
        readiness=lambda: check_readiness(deps),
        store=serving.store,
        live=serving.live,
        journal=serving.journal,
        traffic=deps.traffic,
        settings=lambda: serving.settings,
        sources=lambda: serving.sources,
        hot=HOT,
        logs=RECENT,
        draining=draining,
        sandbox=serving.sandbox,
        upstreams=serving.upstreams,
        benches=Runs(Path(serving.launch.data_dir)),
        is_unsafe=serving.launch.is_unsafe,
    )
    return create_app(deps, extra_routes=create_routes(pages))


async def load(serving: Serving, server: Server) -> None:
    """Make the engine beside the running server, which answers /readyz meanwhile; then say that it is ready."""
    try:
        engine = await serving.make_engine(serving.launch)
    except OperatorError as error:
        serving.failure = error.message
        report(serving.launch, Failed(message=error.message))
        server.should_exit = True
        return
    except Exception:
        # A bug of ours or of a library. The parent starts another process, a few times; the log says why.
        log.exception("engine.failed_to_load")
        serving.failure = "engine failed to load"
        server.should_exit = True
        return
    await server.is_up.wait()
    gc.collect()
    gc.freeze()  # what has been made by now stays for good: the collector need not look at it again and again
    gc.set_threshold(*GC_THRESHOLDS)
    choice = serving.launch.model
    serving.loaded.begin(engine, lambda: serving.make_engine(serving.launch), Path(choice.path) if choice else None)
    serving.is_loading = False
    capabilities = engine.capabilities
    log.info("engine.loaded", model=capabilities.model, context_tokens=capabilities.context_tokens)
    report(
        serving.launch,
        Ready(model=capabilities.model, context_tokens=capabilities.context_tokens, notices=serving.notices),
    )


async def start_sandbox(serving: Serving) -> None:
    """Beside everything else: a server that runs no code answers all the same, and /readyz says why it does not."""
    if serving.launch.is_unsafe:
        log.critical(
            "sandbox.unsafe", meaning="code of models and users may run WITHOUT ISOLATION: it can do all this server can"
        )
    try:
        await serving.sandbox.start()
    except OSError as error:
        log.error("sandbox.not_started", reason=str(error))


async def keep_workers(serving: Serving, server: Server, draining: asyncio.Event) -> None:
    """Processes that solve tasks, if there are to be any; they come once the server is up, and go when it stops."""
    num_workers = serving.settings.tasks.workers
    if serving.journal is None or not num_workers:
        return
    serving.workers.num_expected = num_workers
    await server.is_up.wait()
    options = WorkerOptions(socket=str(serving.worker_socket), parent_pid=os.getpid(), log=serving.settings.log)
    await Workforce(num_workers, options).keep(draining)


def reload_settings(serving: Serving) -> None:
    """Read the settings file again and take over what may change while serving; a bad file changes nothing."""
    try:
        fresh = load_settings(serving.config, os.environ)
    except SettingsError as error:
        log.error("settings.not_reloaded", reason=error.message)
        return
    changed = [name for name in sorted(HOT) if value_of(fresh, name) != value_of(serving.settings, name)]
    for name in changed:
        serving.settings = with_value(serving.settings, name, value_of(fresh, name))
    serving.sources = serving.find_sources()
    serving.store.accounts.use_limits(serving.settings.limits)
    configure_logging(serving.settings.log.level, form=serving.settings.log.format)
    log.info("settings.reloaded", changed=changed)


async def keep_house(serving: Serving) -> None:
    """Forget single requests, tasks and answers that are older than the settings say, hour by hour."""
    while True:
        try:
            await asyncio.to_thread(serving.responses.prune)
            await asyncio.to_thread(serving.store.usage.prune, time.time())
            if serving.journal is not None:
                await serving.journal.prune()
        except AtlasError as error:
            log.warning("ledger.not_pruned", reason=error.message)  # it cannot be written; /readyz says so as well
        await asyncio.sleep(PRUNE_EVERY_S)


async def reconcile(journal: Journal | None) -> None:
    """Have Redis know the tasks that the ledger has; while it is away nothing is to be done, and it is told when it is back."""
    if journal is not None:
        try:
            await journal.reconcile()
        except AtlasError as error:
            log.warning("journal.not_reconciled", reason=error.message)


async def make_engine(launch: Launch) -> Engine:
    """The engine the settings ask for."""
    if launch.model is None:
        return await meet_remote(launch.settings.remote)
    return await load_engine(Path(launch.model.path), model_id=launch.model.id, settings=launch.settings.engine)


async def meet_remote(remote: RemoteSettings) -> Engine:
    """An engine over another server, whose model we know by name from now on.

    Raises:
        OperatorError: it does not answer as an OpenAI-compatible server does.
    """
    engine = RemoteEngine(remote.url, model=remote.model, api_key=os.environ.get("ATLAS_REMOTE_KEY"), timeout_s=remote.timeout_s)
    try:
        await engine.meet()
    except AtlasError as error:
        await engine.close()
        raise OperatorError(f"remote.url {remote.url}: {error.message}") from None
    return engine


def welcome(launch: Launch, store: Store) -> None:
    """On first start, show a key and the way to set up to the person at the terminal: outside the logger, which keeps things."""
    if launch.settings.auth.mode == "off":
        return
    lines = []
    if not os.environ.get("ATLAS_API_KEY") and not store.keys.list():
        key = store.keys.mint("first key").key
        lines += [f"API key, shown this once: {key}", f"  export ATLAS_API_KEY={key}"]
    if launch.restarts == 0 and (token := store.accounts.setup_token()):
        lines += [
            f"Set up the dashboard within 30 minutes: {launch.settings.server.url}/setup?token={token}",
            "  later: atlas users setup",
        ]
    if lines:
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201


def report(launch: Launch, message: Report) -> None:
    """Tell the parent; a parent that is gone needs no answer."""
    try:
        os.write(launch.report_fd, msgspec.json.encode(message) + b"\n")
    except BrokenPipeError:
        log.warning("parent.gone")


if __name__ == "__main__":
    main(make_engine)
