"""Versions that are pytrees of JAX; `cogment_model_registry.frameworks.jax` documents each function."""

from cogment_model_registry.frameworks.jax import Encoded, Loaded, decode, encode, load, publish, store

__all__ = ["Encoded", "Loaded", "decode", "encode", "load", "publish", "store"]
