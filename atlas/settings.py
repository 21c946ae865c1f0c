"""Settings: atlas.toml plus ATLAS_<SECTION>_<NAME> variables, decoded once into frozen structs.

`atlas.toml` at the root of the repository (inside the wheel: `atlas/atlas.toml`) is complete: a test holds it equal to the
defaults here. Secrets are never settings: they live in the data directory or come from ATLAS_API_KEY.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from atlas.errors import SettingsError

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]

UPSTREAM_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
CHAIN_ENTRY = re.compile(r"[!-+.-<>-~]{1,200}")  # printable ASCII, but for "," and "=", which separate in a header of ours


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of atlas.toml; an unknown key is an error, not a silence."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """The listening side."""

    host: str = "127.0.0.1"
    port: Port = 8000
    insecure_http: bool = False
    tls: Literal["off", "auto"] = "off"
    tls_cert: str = ""
    tls_key: str = ""
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    body_limit_bytes: Positive = 8 * 1024 * 1024
    drain_timeout_s: Seconds = 3.0
    ping_interval_s: Seconds = 10.0
    restart_limit: Positive = 5

    @property
    def url(self) -> str:
        """Where clients find this server, by the host it is bound to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert or self.tls == 'auto' else 'http'}://{host}:{self.port}"

    def __post_init__(self) -> None:
        for proxy in self.trusted_proxies:
            ipaddress.ip_network(proxy, strict=False)  # its ValueError names the text; msgspec adds the place


class AuthSettings(Section, frozen=True, kw_only=True):
    """Who may ask."""

    mode: Literal["keys", "off"] = "keys"
    access_token_s: Seconds = 900.0
    refresh_token_s: Seconds = 30 * 86400.0
    session_idle_s: Seconds = 1800.0
    session_s: Seconds = 12 * 3600.0
    invitation_s: Seconds = 7 * 86400.0


class LedgerSettings(Section, frozen=True, kw_only=True):
    """Where what must survive is kept."""

    url: str = ""
    usage_days: Positive = 400


class RedisSettings(Section, frozen=True, kw_only=True):
    """Where limits are counted."""

    url: str = ""
    binary: str = ""
    memory_mb: Annotated[int, msgspec.Meta(ge=16)] = 256


class Price(Section, frozen=True, kw_only=True):
    """Of one model, per million tokens, in whatever currency the owner counts in."""

    prompt: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    completion: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class LimitSettings(Section, frozen=True, kw_only=True):
    """What a user without limits of their own may use; 0 is no limit."""

    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    concurrency: Count = 0
    tokens_per_day: Count = 0
    tokens_per_month: Count = 0
    slice_tokens: Annotated[int, msgspec.Meta(ge=16)] = 256
    prices: dict[str, Price] = {}


class QueueSettings(Section, frozen=True, kw_only=True):
    """The queue in front of the engine."""

    max_running: Count = 0
    max_waiting: Positive = 256
    timeout_s: Seconds = 120.0


class TelemetrySettings(Section, frozen=True, kw_only=True):
    """OpenTelemetry; off unless a collector is named."""

    otlp_url: str = ""


class AdapterSettings(Section, frozen=True, kw_only=True):
    """A LoRA adapter of the model: its GGUF file, and how much of it is added."""

    path: str
    scale: float = 1.0


class EngineSettings(Section, frozen=True, kw_only=True):
    """The model and how it runs; 0 stands for "derive it" where the comment in atlas.toml says so."""

    model: str = "auto"
    context_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_sequences: Annotated[int, msgspec.Meta(ge=1, le=200)] = 32
    cached_sequences: Annotated[int, msgspec.Meta(ge=0, le=56)] = 32
    host_cache_tokens: Annotated[int, msgspec.Meta(ge=-1)] = -1
    prefix_folder: str = ""
    max_waiting: Positive = 256
    max_tokens: Positive = 4096
    prefill_step_ms: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    prefill_chunk_tokens: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 256
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] = -1
    flash_attention: Literal["auto", "on", "off"] = "auto"
    adapters: dict[str, AdapterSettings] = {}
    speculation: Literal["off", "ngram", "draft"] = "off"
    draft_model: str = ""
    draft_tokens: Annotated[int, msgspec.Meta(ge=1, le=32)] = 16
    embedder: str = "auto"
    sleep_after_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    offline: bool = False


class RemoteSettings(Section, frozen=True, kw_only=True):
    """An OpenAI-compatible server used instead of a model in this process; its key comes from ATLAS_REMOTE_KEY."""

    url: str = ""
    model: str = ""
    timeout_s: Seconds = 600.0


class UpstreamSettings(Section, frozen=True, kw_only=True):
    """Another OpenAI-compatible server; its key is in the variable or the file named here, never here itself."""

    url: str
    key_env: str = ""
    key_file: str = ""
    timeout_s: Seconds = 600.0

    def __post_init__(self) -> None:
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"url {self.url!r} is none; write http:// or https://, a host, and the path, usually /v1")
        if url.username is not None:
            raise ValueError(f"the url of {url.hostname} carries a name or a password; name a key_env or a key_file instead")
        if self.key_env and self.key_file:
            raise ValueError(f"key_env {self.key_env!r} and key_file {self.key_file!r} both name a key; name one")


class FallbackSettings(Section, frozen=True, kw_only=True):
    """Who answers where the model that was asked for cannot."""

    upstreams: dict[str, UpstreamSettings] = {}
    chains: dict[str, tuple[str, ...]] = {}
    deadline_s: Seconds = 120.0

    def __post_init__(self) -> None:
        for name in self.upstreams:
            if not UPSTREAM_NAME.fullmatch(name):
                raise ValueError(f"upstream {name!r}: a name is made of a-z, 0-9, '-' and '_', 32 at most")
        for model, chain in self.chains.items():
            _check_chain(model, chain, self.upstreams)


def _check_chain(model: str, chain: tuple[str, ...], upstreams: Mapping[str, UpstreamSettings]) -> None:
    """Raises ValueError: a chain that names what there is not, or itself."""
    place = f"chain of {model!r}"
    if not chain:
        raise ValueError(f"{place} is empty; name who answers instead, or take it out")
    if "/" in model or model in (*chain, "atlas", "auto"):
        raise ValueError(
            f"{place}: a chain belongs to a model of this machine or a name of your own, and does not lead to itself"
        )
    for entry in chain:
        name, slash, of_upstream = entry.partition("/")
        if not CHAIN_ENTRY.fullmatch(entry) or (slash and not of_upstream):
            raise ValueError(f"{place}: {entry!r} is no model; write UPSTREAM/MODEL, or the id of a model of this machine")
        if slash and name not in upstreams:
            known = ", ".join(upstreams) or "none is"
            raise ValueError(f"{place}: {entry!r} names upstream {name!r}, which is not in fallback.upstreams ({known})")


class SandboxSettings(Section, frozen=True, kw_only=True):
    """Where code runs that nobody trusts."""

    min_tier: Literal["native", "bwrap", "landlock"] = "bwrap"
    slots: Count = 0
    max_waiting: Positive = 1000
    python: str = ""
    uid: Annotated[int, msgspec.Meta(ge=1000)] = 64321
    wall_s: Seconds = 10.0
    max_wall_s: Seconds = 120.0
    memory_mb: Annotated[int, msgspec.Meta(ge=64)] = 512
    max_memory_mb: Annotated[int, msgspec.Meta(ge=64)] = 4096


class TaskSettings(Section, frozen=True, kw_only=True):
    """Tasks, and the workers that solve them."""

    workers: Count = 1
    lease_s: Annotated[float, msgspec.Meta(ge=0.5)] = 15.0
    open_tasks: Count = 1000
    sandbox_s_per_day: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    result_ttl_s: Seconds = 30 * 86400.0
    k: Annotated[int, msgspec.Meta(ge=1, le=128)] = 5
    max_attempts: Positive = 5
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.6


class ResponseSettings(Section, frozen=True, kw_only=True):
    """Answers of /v1/responses that are kept, to be gone on from."""

    keep_s: Annotated[float, msgspec.Meta(ge=0)] = 30 * 86400.0
    keep_mb: Positive = 1024


class AnthropicSettings(Section, frozen=True, kw_only=True):
    """The Anthropic dialect."""

    model_map: bool = True


class LogSettings(Section, frozen=True, kw_only=True):
    """What goes to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(Section, frozen=True, kw_only=True):
    """Everything; a room receives its own section only."""

    data_dir: str = ""
    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    ledger: LedgerSettings = LedgerSettings()
    redis: RedisSettings = RedisSettings()
    limits: LimitSettings = LimitSettings()
    queue: QueueSettings = QueueSettings()
    engine: EngineSettings = EngineSettings()
    remote: RemoteSettings = RemoteSettings()
    fallback: FallbackSettings = FallbackSettings()
    sandbox: SandboxSettings = SandboxSettings()
    tasks: TaskSettings = TaskSettings()
    responses: ResponseSettings = ResponseSettings()
    anthropic: AnthropicSettings = AnthropicSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()


# What a running server takes over from the settings file on SIGHUP; everything else needs a restart.
HOT = frozenset(
    {
        "log.level",
        "limits.requests_per_minute",
        "limits.tokens_per_minute",
        "limits.concurrency",
        "limits.tokens_per_day",
        "limits.tokens_per_month",
    }
)


def value_of(settings: Settings, dotted: str) -> Any:
    """The value of "section.name"."""
    section, _, name = dotted.partition(".")
    return getattr(getattr(settings, section), name)


def with_value(settings: Settings, dotted: str, value: Any) -> Settings:
    """Settings with another value of "section.name"."""
    section, _, name = dotted.partition(".")
    changed = msgspec.structs.replace(getattr(settings, section), **{name: value})
    return msgspec.structs.replace(settings, **{section: changed})


def load_settings(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read `path` (None: defaults only), then ATLAS_* variables, then `overrides` ("section.name" -> value, None skipped).

    Raises:
        SettingsError: the file cannot be read, is not TOML, or a value has the wrong name, type or range.
    """
    table = _read(path) if path else {}
    given = {dotted: value for dotted, value in (overrides or {}).items() if value is not None}
    for dotted, value in {**_from_environ(environ), **given}.items():
        _put(table, dotted, value)
    try:
        return msgspec.convert(table, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: {error}") from None


def sources_of(current: Settings, path: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Where each value that was set comes from, by "section.name": file, env, or flag (which is told by its value alone).

    To be asked right after `load_settings`, before the file can change. What a start finds out for itself is no flag: a port that
    was left free, and the files of certificates.

    Raises:
        SettingsError: as `load_settings`.
    """
    loaded = load_settings(path, environ)
    found = {dotted: "file" for dotted, _ in _flat(_read(path) if path else {})}
    found |= dict.fromkeys(_from_environ(environ), "env")
    derived = {"server.tls_cert", "server.tls_key"} | ({"server.port"} if loaded.server.port == 0 else set())
    before = dict(_flat(msgspec.to_builtins(loaded)))
    for dotted, value in _flat(msgspec.to_builtins(current)):
        if value != before[dotted] and dotted not in derived:
            found[dotted] = "flag"
    return found


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """("section.name", value) of a table of tables."""
    for section, values in table.items():
        if isinstance(values, Mapping):
            yield from ((f"{section}.{name}", value) for name, value in values.items())
        else:
            yield section, values


def data_dir(settings: Settings, environ: Mapping[str, str]) -> Path:
    """`data_dir`, else ATLAS_HOME, else $XDG_DATA_HOME/atlas, else ~/.local/share/atlas."""
    if chosen := settings.data_dir or environ.get("ATLAS_HOME"):
        return Path(chosen).expanduser().absolute()
    base = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "atlas"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """ATLAS_ENGINE_THREADS=4 -> engine.threads; lists are comma-separated. Other ATLAS_* names are left alone."""
    found: dict[str, Any] = {}
    for section in msgspec.structs.fields(Settings):
        if not isinstance(section.type, type) or not issubclass(section.type, Section):
            continue
        for field in msgspec.structs.fields(section.type):
            text = environ.get(f"ATLAS_{section.name}_{field.name}".upper())
            if text is not None:
                is_list = isinstance(field.default, tuple)
                found[f"{section.name}.{field.name}"] = [part for part in text.split(",") if part] if is_list else text
    return found


def _put(table: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, name = dotted.rpartition(".")
    target = table.setdefault(section, {}) if section else table
    if not isinstance(target, dict):
        raise SettingsError(f"settings: [{section}] must be a table")
    target[name] = value


def packaged(name: str) -> Path:
    """A file or folder shipped with ATLAS: inside the wheel, or at the root of a checkout.

    `os.fspath`-able; may not exist (a wheel built without it).
    """
    inside = Path(os.fspath(__file__)).parent / name
    return inside if inside.exists() else Path(__file__).parents[1] / name
