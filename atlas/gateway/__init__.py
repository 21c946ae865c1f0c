"""OpenAI's and Anthropic's HTTP on one side, our values on the other; no decisions.

`create_app` turns an engine, a catalogue of models and a verifier of keys into a Litestar application. Every route needs a key
except /livez, /readyz and /health. Whatever ends an exchange, a disconnect included, cancels what the engine still does for it.
"""

from atlas.gateway.app import create_app
from atlas.gateway.deps import GatewayDeps, KeyVerifier, ModelCatalog, ModelInfo, Readiness

__all__ = ["GatewayDeps", "KeyVerifier", "ModelCatalog", "ModelInfo", "Readiness", "create_app"]
