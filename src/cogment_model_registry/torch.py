"""Versions that are parameters of PyTorch; `cogment_model_registry.frameworks.torch` documents each function."""

from cogment_model_registry.frameworks.torch import Encoded, Loaded, decode, encode, load, publish, store

__all__ = ["Encoded", "Loaded", "decode", "encode", "load", "publish", "store"]
