"""ATLAS: a coding model server that proves its answers by running them."""

__version__ = "0.1.0"
