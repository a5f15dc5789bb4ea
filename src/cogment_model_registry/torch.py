"""Versions that are parameters of PyTorch; `cogment_model_registry.frameworks.torch` documents each function."""

from cogment_model_registry.frameworks.torch import (
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
