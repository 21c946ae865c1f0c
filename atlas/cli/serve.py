"""`atlas serve`: bind, hold the data directory, keep a serving process behind the socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from atlas import __version__, control
from atlas.cli.keeper import RedisKeeper
from atlas.cli.models import download_progress, find_registry
from atlas.cli.options import find_directory, read_settings, settings_options
from atlas.cli.supervisor import Supervisor, serving_command
from atlas.directory import DataDirectory
from atlas.errors import OperatorError
from atlas.launch import Launch, ModelChoice, Ready
from atlas.log import configure_logging
from atlas.settings import Settings
from atlas.valkey import PrivateRedis, find_server

# Something that even the bundled model can do.
FIRST_QUESTION = "Write solve(xs). Given a list xs of integers, keep only the even numbers, then return the sum."
BACKLOG = 2048  # connections that wait while a serving process is replaced


@click.command()
@click.option("--model", help="auto, nano, a name of `atlas models list`, or PATH.gguf.")
@click.option("--host", help="Address to listen on; anything but loopback needs TLS or --insecure-http.")
@click.option("--port", type=int, help="0 takes any free port.")
@click.option("--offline", is_flag=True, default=None, help="Never download anything.")
@click.option("--tls", type=click.Choice(["off", "auto"]), help="auto: HTTPS with a certificate made here.")
@click.option("--tls-cert", help="PEM file of your own certificate chain, for HTTPS; with --tls-key.")
@click.option("--tls-key", help="PEM file of its private key.")
@click.option("--insecure-http", is_flag=True, default=None, help="Allow plain HTTP on a network others can reach.")
@click.option(
    "--unsafe-no-sandbox",
    is_flag=True,
    help="Run code of models and users WITHOUT ISOLATION where none can be had. It can do all you can.",
)
@settings_options
def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    offline: bool | None,
    tls: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    insecure_http: bool | None,
    unsafe_no_sandbox: bool,
    config: Path | None,
    data_dir: str | None,
) -> None:
    """Serve a model to OpenAI and Anthropic clients.

    \b
    Example:
      atlas serve --model nano --port 8080

    The only line on stdout is "ATLAS ready on URL".
    """
    settings = read_settings(
        config,
        data_dir,
        engine__model=model,
        server__host=host,
        server__port=port,
        engine__offline=offline,
        server__tls=tls,
        server__tls_cert=tls_cert,
        server__tls_key=tls_key,
        server__insecure_http=insecure_http,
    )
    run_server(settings, command=serving_command(), config=config, is_unsafe=unsafe_no_sandbox)


def run_server(settings: Settings, *, command: Sequence[str], config: Path | None = None, is_unsafe: bool = False) -> None:
    """Serve until a signal says stop; `command` is the serving process, `config` the file to be read again on SIGHUP.

    With `is_unsafe`, code runs without isolation where there is none to be had.

    Raises:
        OperatorError: the address, the data directory, Redis or the model cannot be used.
    """
    configure_logging(settings.log.level, form=settings.log.format)
    check_exposure(settings)
    directory = find_directory(settings).create()
    directory.hold()
    try:
        settings = with_certificates(settings, directory)
        listener = bind(settings.server.host, settings.server.port)
        redis = private_redis(settings, directory)
        choice = choose_model(settings)
        listener.listen(BACKLOG)  # only now: a client is refused, and not kept waiting, while a model is downloaded
        controller = control.listen(directory.control_socket)  # held here: only its number travels
        launch = msgspec.structs.replace(
            _launch(settings, directory, listener, controller, choice),
            redis_url=redis.url if redis else settings.redis.url,
            config_path=str(config.absolute()) if config else "",
            is_unsafe=is_unsafe,
        )
        keeper = RedisKeeper(redis) if redis else None
        supervisor = Supervisor(launch, command, on_ready=lambda ready: announce(launch, ready), redis=keeper)
        asyncio.run(supervisor.run())
    finally:
        directory.control_socket.unlink(missing_ok=True)
        directory.release()


def with_certificates(settings: Settings, directory: DataDirectory) -> Settings:
    """The settings with the PEM files the serving process is to use; unchanged for plain HTTP."""
    if settings.server.tls == "off" and not (settings.server.tls_cert or settings.server.tls_key):
        return settings
    from atlas.tls import ensure_certificates  # its library costs start-up time, few servers need it

    files = ensure_certificates(directory.path, settings.server)
    server = msgspec.structs.replace(settings.server, tls_cert=str(files.cert.absolute()), tls_key=str(files.key.absolute()))
    return msgspec.structs.replace(settings, server=server)


def private_redis(settings: Settings, directory: DataDirectory) -> PrivateRedis | None:
    """The Redis to run beside the server; None if `redis.url` names one.

    Raises:
        OperatorError: there is no binary for it.
    """
    if settings.redis.url:
        return None
    return PrivateRedis(find_server(settings.redis.binary), directory.path / "live", memory_mb=settings.redis.memory_mb)


def choose_model(settings: Settings) -> ModelChoice | None:
    """The model file to serve, downloaded if need be; None with a remote engine."""
    if settings.remote.url:
        return None
    with download_progress(settings.engine.model) as progress:
        return find_registry(settings).choose(settings.engine, confirm=confirm_download, progress=progress)


def confirm_download(what: str, size_bytes: int) -> bool:
    """Ask the person at the terminal; nobody there means no: such a download is asked for by name."""
    if not sys.stdin.isatty():
        return False
    return click.confirm(f"Download {what} ({size_bytes / 1e9:.1f} GB)?", default=True, err=True)


def _launch(
    settings: Settings, directory: DataDirectory, listener: socket.socket, controller: socket.socket, choice: ModelChoice | None
) -> Launch:
    assert directory.lock_fd is not None
    server = msgspec.structs.replace(settings.server, port=listener.getsockname()[1])
    return Launch(
        settings=msgspec.structs.replace(settings, server=server),
        data_dir=str(directory.path),
        http_fd=listener.fileno(),
        control_fd=controller.fileno(),
        lock_fd=directory.lock_fd,
        report_fd=-1,
        parent_pid=0,
        model=choice,
    )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet.

    Raises:
        OperatorError: the port is taken, or the host is not an address of this machine.
    """
    family, address = _resolve(host, port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OperatorError(
                f"port {port} on {host} is in use by another program; stop it, or choose another with --port"
            ) from None
        raise OperatorError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def check_exposure(settings: Settings) -> None:
    """Keys and passwords travel in the clear over plain HTTP, so only loopback is free.

    Raises:
        OperatorError: others could reach this server, and nobody said that this is meant.
    """
    server = settings.server
    if all(ipaddress.ip_address(address).is_loopback for _, address in _resolve(server.host, server.port)):
        return
    if settings.auth.mode == "off":
        raise OperatorError(f'auth.mode = "off" is for loopback only, and {server.host} is not; use keys, or --host 127.0.0.1')
    if not (server.insecure_http or server.tls_cert or server.tls == "auto"):
        raise OperatorError(
            f"{server.host} can be reached by others, and keys would travel in the clear; "
            "use --tls auto, --tls-cert with --tls-key, a TLS proxy in front of 127.0.0.1, or accept it with --insecure-http"
        )


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Addresses of `host`, IPv4 first: that is where clients of "localhost" look first."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OperatorError(f"host '{host}': {error.strerror}") from None
    addresses = [(info[0], str(info[4][0])) for info in found]
    return sorted(addresses, key=lambda address: address[0] != socket.AF_INET)


def announce(launch: Launch, ready: Ready) -> None:
    """The ready line for programs, how to connect for people."""
    server = launch.settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    url = f"{'https' if server.tls_cert else 'http'}://{host}:{server.port}"
    body = json.dumps({"model": ready.model, "messages": [{"role": "user", "content": FIRST_QUESTION}]})
    lines = [
        f"ATLAS {__version__}: {ready.model}, {ready.context_tokens} tokens of context, data in {launch.data_dir}",
        f"  base URL  {url}/v1   (OpenAI; Anthropic clients: {url})",
        f"  model     {ready.model}",
        f"  key       {_where_the_key_is(launch.settings)}",
        f'  try       curl {url}/v1/chat/completions -H "Authorization: Bearer $ATLAS_API_KEY" \\',
        f"              -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        *(f"  note      {notice}" for notice in ready.notices),
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
    with contextlib.suppress(BrokenPipeError):  # whoever started us has closed its end; we serve all the same
        print(f"ATLAS ready on {url}", flush=True)


def _where_the_key_is(settings: Settings) -> str:
    if settings.auth.mode == "off":
        return "none is asked for (auth.mode = off)"
    if os.environ.get("ATLAS_API_KEY"):
        return "yours, from ATLAS_API_KEY; another: atlas keys create --name NAME"
    return "the one printed at first start; another: atlas keys create --name NAME"
