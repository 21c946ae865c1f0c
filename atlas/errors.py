"""Everything ATLAS can refuse or fail at.

AtlasError
|-- BadRequest                 400
|   |-- ContextLengthExceeded  400
|   `-- Unsupported            400
|-- Unauthorized               401
|-- Forbidden                  403
|   |-- ModelNotAllowed        403
|   `-- RemoteNotAllowed       403
|-- NotFound                   404
|   `-- ModelNotFound          404
|-- Conflict                   409
|   `-- DeliveryOver           409
|-- ModelNotLoaded             409
|-- PayloadTooLarge            413
|-- RateLimited                429
|   |-- BudgetExhausted        429
|   `-- TooManyAttempts        429
|-- EngineFailed               500
|-- UpstreamFailed             502
|-- Unavailable                503
|   |-- Disconnected           503
|   |-- EngineOverloaded       503
|   |-- EngineUnavailable      503
|   |-- LedgerUnavailable      503
|   |-- LimitsUnavailable      503
|   |-- SandboxOverloaded      503
|   |-- SandboxRefused         503
|   `-- SandboxUnavailable     503
`-- OperatorError              (command line only)
    |-- SettingsError
    |-- DataDirectoryBusy
    |-- ModelFileError
    `-- DownloadError

A failure of the candidate is a value, never one of these. Only `gateway/errors.py` turns them into JSON; only `cli` turns them
into a line on stderr.
"""

from __future__ import annotations


class AtlasError(Exception):
    """Never raised itself.

    Attributes:
        status: HTTP status the gateway answers with.
        code: OpenAI's machine-readable `code`.
        type: OpenAI's `type`.
        param: name of the offending request field, if one is to blame.
        retry_after_s: when trying again may help; sent as `Retry-After`.
    """

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(AtlasError):
    """The request itself is wrong; repeating it cannot help."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class ContextLengthExceeded(BadRequest):
    """The prompt leaves no room for an answer in the model's context."""

    code = "context_length_exceeded"


class Unsupported(BadRequest):
    """A field that would change the meaning of the answer, and that this server or model cannot honour."""

    code = "unsupported_parameter"


class Unauthorized(AtlasError):
    """No key, or a key that is unknown, revoked or expired."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(AtlasError):
    """A valid key without the right for this."""

    status = 403
    code = "insufficient_scope"
    type = "permission_error"


class ModelNotAllowed(Forbidden):
    """The key is limited to other models."""

    code = "model_not_allowed"


class RemoteNotAllowed(Forbidden):
    """The key may not have its requests sent to another machine."""

    code = "remote_not_allowed"


class Conflict(AtlasError):
    """The thing exists already, or has changed meanwhile."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class DeliveryOver(Conflict):
    """A worker speaks of a task that it has lost: nothing it says about it counts any more."""

    code = "delivery_over"


class NotFound(AtlasError):
    """No such thing, or not one the caller may see."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No model of that name; the message lists those there are."""

    code = "model_not_found"


class ModelNotLoaded(AtlasError):
    """The model is registered on this machine, but another one is loaded."""

    status = 409
    code = "model_not_loaded"
    type = "invalid_request_error"


class PayloadTooLarge(AtlasError):
    """The body is larger than the configured limit."""

    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class RateLimited(AtlasError):
    """A limit of this key or user is used up for now."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class BudgetExhausted(RateLimited):
    """A budget per day or month is used up; it does not come back by waiting a minute."""

    code = "insufficient_quota"
    type = "insufficient_quota"


class TooManyAttempts(RateLimited):
    """Too many wrong passwords or tokens from one place."""

    code = "too_many_attempts"


class EngineFailed(AtlasError):
    """The engine broke while answering; the request was sound."""

    code = "engine_failed"


class UpstreamFailed(AtlasError):
    """A remote engine answered wrongly or not at all."""

    status = 502
    code = "upstream_failed"


class Unavailable(AtlasError):
    """Not now; `retry_after_s` says when to try again."""

    status = 503
    code = "unavailable"


class Disconnected(Unavailable):
    """A worker and its server have lost each other; the worker goes on trying."""

    code = "worker_disconnected"


class EngineOverloaded(Unavailable):
    """The bounded queue in front of the engine is full."""

    code = "overloaded"


class EngineUnavailable(Unavailable):
    """The model is still loading, or the server is shutting down."""

    code = "engine_unavailable"


class LedgerUnavailable(Unavailable):
    """The ledger cannot be written, so nothing that has to be accounted for may begin."""

    code = "ledger_unavailable"


class LimitsUnavailable(Unavailable):
    """Redis does not answer, so limits cannot be checked; nothing is let through unchecked."""

    code = "limits_unavailable"


class SandboxUnavailable(Unavailable):
    """The sandbox itself failed: a process of ours died, a socket was cut, the disk is full. Says nothing about the candidate."""

    code = "sandbox_unavailable"


class SandboxRefused(Unavailable):
    """Code cannot be isolated on this machine as the settings demand, so it is not run; `atlas doctor` says what to do."""

    code = "sandbox_refused"


class SandboxOverloaded(Unavailable):
    """The bounded queue in front of the sandbox is full."""

    code = "sandbox_overloaded"


class OperatorError(AtlasError):
    """Something the person at the command line has to mend; printed as one line, exit status 1."""


class SettingsError(OperatorError):
    """atlas.toml or an ATLAS_* variable does not say something we can use."""


class DataDirectoryBusy(OperatorError):
    """Another server holds the data directory."""


class ModelFileError(OperatorError):
    """A model file is missing, damaged, or of a kind this build cannot load."""


class DownloadError(OperatorError):
    """A model could not be fetched; the message says what happened and what to do."""
