"""Versions that are trees of NumPy arrays; `cogment_model_registry.frameworks.numpy` documents each function."""

from cogment_model_registry.frameworks.numpy import (
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
