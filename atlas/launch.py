"""What the parent of `atlas serve` hands to the serving process, and what it hears back."""

from __future__ import annotations

import msgspec

from atlas.settings import Settings


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The model to serve.

    Attributes:
        path: its GGUF file.
        notices: what the person starting the server should know about the choice; said again on /readyz.
    """

    id: str
    path: str
    notices: tuple[str, ...] = ()


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a serving process starts with. Holds no secret: it travels as a command-line argument.

    Attributes:
        settings: with the port that was really bound.
        data_dir: the directory whose lock `lock_fd` holds.
        http_fd: the listening socket; it stays open in the parent, so that connections wait while this process is replaced.
        control_fd: the listening Unix socket of the command line.
        report_fd: write end of the pipe on which Reports go back, one JSON line each.
        parent_pid: the process to end with.
        model: None with a remote engine.
        restarts: how many serving processes there were before this one.
    """

    settings: Settings
    data_dir: str
    http_fd: int
    control_fd: int
    lock_fd: int
    report_fd: int
    parent_pid: int
    model: ModelChoice | None = None
    restarts: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded and requests are answered."""

    model: str
    context_tokens: int
    notices: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The serving process ends for a reason only a person can mend; another try would end the same way."""

    message: str


Report = Ready | Failed
