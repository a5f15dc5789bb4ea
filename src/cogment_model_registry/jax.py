"""Versions that are pytrees of JAX; `cogment_model_registry.frameworks.jax` documents each function."""

from cogment_model_registry.frameworks.jax import (
    Encoded,
    Loaded,
    Tracked,
    decode,
    encode,
    load,
    publish,
    store,
    track,
)

__all__ = ["Encoded", "Loaded", "Tracked", "decode", "encode", "load", "publish", "store", "track"]
