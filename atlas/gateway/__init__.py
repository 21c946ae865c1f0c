"""OpenAI's and Anthropic's HTTP on one side, our values on the other; no decisions.

`create_app` turns an engine, a catalogue of models and a store into a Litestar application. Every route declares who
may call it. Whatever ends an exchange, a disconnect included, cancels what the engine still does for it.
"""

from atlas.gateway.app import create_app
from atlas.gateway.deps import GatewayDeps, ModelCatalog, ModelInfo, Readiness
from atlas.gateway.health import check_readiness
from atlas.gateway.worker_watch import WorkerWatch

__all__ = ["GatewayDeps", "ModelCatalog", "ModelInfo", "Readiness", "WorkerWatch", "check_readiness", "create_app"]
