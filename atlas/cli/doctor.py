"""`atlas doctor`: what this machine offers, what is wrong, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import click
import msgspec

from atlas import __version__, control
from atlas.cli.doctor_check import Check
from atlas.cli.doctor_sandbox import check_sandbox
from atlas.cli.models import find_registry
from atlas.cli.options import find_directory, json_option, read_settings, settings_options
from atlas.cli.serve import bind, check_exposure
from atlas.directory import DataDirectory
from atlas.engine import ModelRegistry
from atlas.errors import DataDirectoryBusy, OperatorError
from atlas.settings import LedgerSettings, Settings
from atlas.store import open_store
from atlas.valkey import find_server

LOW_MEMORY_BYTES = 1024**3  # below this even a small model swaps; chosen
LOW_DISK_BYTES = 1024**3
# In a process of its own: a damaged shared library may abort whoever loads it.
_PROBE = "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_supports_gpu_offload())"
_PROBE_TIMEOUT_S = 60.0


@click.command()
@json_option
@settings_options
def doctor(as_json: bool, config: Path | None, data_dir: str | None) -> None:
    """Check this machine, its settings and its data; exit status 1 if something is broken.

    \b
    Example:
      atlas doctor --json
    """
    settings = read_settings(config, data_dir)
    checks = list(examine(settings))
    is_sound = all(check.status != "fail" for check in checks)
    if as_json:
        print(json.dumps({"ok": is_sound, "checks": msgspec.to_builtins(checks)}))
    else:
        for check in checks:
            print(f"{check.status:4}  {check.name:15} {check.detail}")
    if not is_sound:
        sys.exit(1)


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, in the order in which a server would meet them."""
    directory = find_directory(settings)
    yield Check(name="atlas", status="ok", detail=f"{__version__}, Python {platform.python_version()} ({sys.executable})")
    yield check_llama()
    yield check_gpu()
    yield check_memory()
    yield check_directory(directory, settings.ledger)
    yield check_disk(directory)
    yield check_redis(settings)
    server = running_server(directory)
    yield check_server(directory, server)
    yield check_port(settings, server)
    yield from check_models(settings)
    yield from check_sandbox(settings.sandbox)


def check_llama() -> Check:
    try:
        probe = subprocess.run(  # noqa: S603 - our own interpreter and a constant
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name="llama.cpp", status="fail", detail=f"importing llama_cpp took more than {_PROBE_TIMEOUT_S:.0f} s")
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
        return Check(
            name="llama.cpp", status="fail", detail=f"{reason}; run `make install`, or pip install llama-cpp-python again"
        )
    version, offload = probe.stdout.split()[-2:]
    return Check(
        name="llama.cpp", status="ok", detail=f"llama-cpp-python {version}, {'GPU' if offload == 'True' else 'CPU'} build"
    )


def check_gpu() -> Check:
    hardware = ModelRegistry.hardware()
    if hardware.notice:
        return Check(name="gpu", status="warn", detail=hardware.notice)
    if hardware.gpu is None:
        return Check(name="gpu", status="ok", detail="none found; models run on the CPU")
    gpu = hardware.gpu
    free = f"{gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB free"
    return Check(
        name="gpu", status="ok", detail=f"{gpu.name}, {free}, {hardware.backend} build, nvcc {hardware.nvcc or 'not found'}"
    )


def check_memory() -> Check:
    available_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts what caches would give back, too
        fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        available_bytes = int(fields["MemAvailable"].split()[0]) * 1024
    status: Literal["ok", "warn"] = "ok" if available_bytes > LOW_MEMORY_BYTES else "warn"
    return Check(name="memory", status=status, detail=f"{available_bytes / 1e9:.1f} GB available")


def check_directory(directory: DataDirectory, ledger: LedgerSettings) -> Check:
    """The data directory, its mode, and the ledger in it unless a server has it open."""
    path = directory.path
    if not path.exists():
        return Check(name="data directory", status="ok", detail=f"{path} will be made at the first start")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Check(
            name="data directory", status="fail", detail=f"{path} cannot be read and written; choose another with --data-dir"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check(
            name="data directory", status="warn", detail=f"{path} is open to others (mode {mode:o}); the next start closes it"
        )
    if not directory.ledger.exists() and (not ledger.url or directory.read_secret("pepper") is None):
        return Check(name="data directory", status="ok", detail=f"{path}, no ledger yet")
    try:
        directory.hold()
    except DataDirectoryBusy:
        return Check(name="data directory", status="ok", detail=f"{path}, held by a running server")
    try:
        store = open_store(directory, settings=ledger)
        try:
            num_keys = sum(1 for key in store.keys.list() if key.revoked_at is None)
            broken = store.audit.verify()
        finally:
            store.close()
    except OperatorError as error:
        return Check(name="data directory", status="fail", detail=error.message)
    finally:
        directory.release()
    if broken is not None:
        detail = f"{path}: entry {broken} of the audit log, or one before it, was changed behind ATLAS's back"
        return Check(name="data directory", status="fail", detail=detail)
    return Check(name="data directory", status="ok", detail=f"{path}, {num_keys} valid keys, audit log unbroken")


def check_redis(settings: Settings) -> Check:
    """The server that counts limits: the one that is named, or the one that would be started."""
    if settings.redis.url:
        return Check(name="redis", status="ok", detail="redis.url names one; /readyz says whether it answers")
    return _tried("redis", partial(find_server, settings.redis.binary), "a private Valkey can be started")


def check_disk(directory: DataDirectory) -> Check:
    existing = next(folder for folder in (directory.path, *directory.path.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    status: Literal["ok", "warn"] = "ok" if free_bytes > LOW_DISK_BYTES else "warn"
    return Check(name="disk", status=status, detail=f"{free_bytes / 1e9:.1f} GB free for {directory.path}")


def running_server(directory: DataDirectory) -> dict[str, str | int | None] | None:
    """Status of the server on this data directory, None if there is none."""
    try:
        status: dict[str, str | int | None] = control.call(directory.control_socket, "status")
    except (OSError, OperatorError):
        return None
    return status


def check_server(directory: DataDirectory, server: dict[str, str | int | None] | None) -> Check:
    if server is None:
        return Check(name="server", status="ok", detail=f"none runs on {directory.path}")
    where = f"pid {server['parent_pid']} on {server['host']}:{server['port']}, model {server['model'] or 'loading'}"
    restarts = f", restarted {server['restarts']} times" if server["restarts"] else ""
    return Check(name="server", status="ok", detail=where + restarts)


def check_port(settings: Settings, server: dict[str, str | int | None] | None) -> Check:
    host, port = settings.server.host, settings.server.port
    if server is not None and server["port"] == port:
        return Check(name="port", status="ok", detail=f"{port} is this server's")
    return _tried("port", partial(_bind_once, settings), f"{host}:{port} is free")


def check_models(settings: Settings) -> Iterator[Check]:
    """Each model on this machine, then the one the settings name."""
    registry = find_registry(settings)
    try:
        installed = registry.installed()
    except OperatorError as error:
        yield Check(name="models", status="fail", detail=error.message)
        return
    for name, model in installed.items():
        yield _tried(f"model {name}", partial(registry.find, name), f"{model.path}, {model.size_bytes / 1e9:.2f} GB")
    if settings.remote.url:
        yield Check(name="served model", status="ok", detail=f"{settings.remote.model or 'the first'} at {settings.remote.url}")
    elif settings.engine.model == "auto":
        yield _tried("served model", partial(registry.find, "nano"), "auto: the best that fits a GPU, else nano")
    elif settings.engine.model in registry.catalog and settings.engine.model not in installed and not settings.engine.offline:
        yield Check(name="served model", status="warn", detail=f"{settings.engine.model} will be downloaded at the next start")
    else:
        yield _tried("served model", partial(registry.find, settings.engine.model), settings.engine.model)


def _bind_once(settings: Settings) -> None:
    check_exposure(settings)
    listener: socket.socket = bind(settings.server.host, settings.server.port)
    listener.close()


def _tried(name: str, attempt: Callable[[], object], detail: str) -> Check:
    try:
        attempt()
    except OperatorError as error:
        return Check(name=name, status="fail", detail=error.message)
    return Check(name=name, status="ok", detail=detail)
