"""A model registry for reinforcement learning and deployment, wire-compatible with the Cogment Model Registry."""

from cogment_model_registry._version import __version__

TYPE_CHECKING = False  # for type checkers it is true; importing `typing` takes longer than all the rest here
if TYPE_CHECKING:
    from cogment_model_registry import aio, errors
    from cogment_model_registry.client.blocking import ModelRegistry
    from cogment_model_registry.client.packing import Folder
    from cogment_model_registry.client.progress import Progress
    from cogment_model_registry.client.tracking import Latest
    from cogment_model_registry.records.consumers import Consumer
    from cogment_model_registry.records.history import HistoryEntry
    from cogment_model_registry.records.lifecycle import Alias, Decision, ModelSummary, RetentionReport, Version
    from cogment_model_registry.records.news import CaughtUp, Gap, Gone, News, Saved
    from cogment_model_registry.records.retention import RetentionRule, TransientShare
    from cogment_model_registry.records.signatures import PublicKey, Signature
    from cogment_model_registry.records.versions import ModelInfo, VersionInfo
    from cogment_model_registry.system.sealed_memory import SealedMemory

__all__ = [
    "Alias",
    "CaughtUp",
    "Consumer",
    "Decision",
    "Folder",
    "Gap",
    "Gone",
    "HistoryEntry",
    "Latest",
    "ModelInfo",
    "ModelRegistry",
    "ModelSummary",
    "News",
    "Progress",
    "PublicKey",
    "RetentionReport",
    "RetentionRule",
    "Saved",
    "SealedMemory",
    "Signature",
    "TransientShare",
    "Version",
    "VersionInfo",
    "__version__",
    "aio",
    "errors",
]

_MODULES = {
    "Alias": "records.lifecycle",
    "CaughtUp": "records.news",
    "Consumer": "records.consumers",
    "Decision": "records.lifecycle",
    "Folder": "client.packing",
    "Gap": "records.news",
    "Gone": "records.news",
    "HistoryEntry": "records.history",
    "Latest": "client.tracking",
    "ModelInfo": "records.versions",
    "ModelRegistry": "client.blocking",
    "ModelSummary": "records.lifecycle",
    "News": "records.news",
    "Progress": "client.progress",
    "PublicKey": "records.signatures",
    "RetentionReport": "records.lifecycle",
    "RetentionRule": "records.retention",
    "Saved": "records.news",
    "SealedMemory": "system.sealed_memory",
    "Signature": "records.signatures",
    "TransientShare": "records.retention",
    "Version": "records.lifecycle",
    "VersionInfo": "records.versions",
}


def __getattr__(name: str) -> object:
    # Each is loaded when it is first used: the server needs no client, and the command line loads what it runs.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 # as above

    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    value: object = getattr(module, name) if name in _MODULES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
