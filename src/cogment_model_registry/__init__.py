"""A model registry for reinforcement learning and deployment, wire-compatible with the Cogment Model Registry."""

from cogment_model_registry._version import __version__
from cogment_model_registry.records import ModelInfo, VersionInfo

__all__ = ["ModelInfo", "VersionInfo", "__version__"]
