"""A model registry for reinforcement learning and deployment, wire-compatible with the Cogment Model Registry."""

from typing import TYPE_CHECKING, Any

from cogment_model_registry._version import __version__
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

if TYPE_CHECKING:
    from cogment_model_registry.client.blocking import ModelRegistry
    from cogment_model_registry.client.progress import Progress
    from cogment_model_registry.client.tracking import Latest

__all__ = ["Latest", "ModelInfo", "ModelRegistry", "Progress", "VersionInfo", "__version__"]


def __getattr__(name: str) -> Any:
    # The client is loaded when it is asked for, since the server, which never needs it, loads this module too.
    if name not in ("Latest", "ModelRegistry", "Progress"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cogment_model_registry.client import blocking, progress, tracking  # noqa: PLC0415

    return {"Latest": tracking.Latest, "ModelRegistry": blocking.ModelRegistry, "Progress": progress.Progress}[name]
