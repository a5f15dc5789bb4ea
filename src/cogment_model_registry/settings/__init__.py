"""The settings of the servers: each one's name, kind, default, environment variable and meaning, once.

The command line, its help, the environment and the tables in the documentation derive from the fields of the settings
classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cogment_model_registry.records.sizes import GIB, KIB, MIB
from cogment_model_registry.settings.kinds import (
    ALL_INTERFACES,
    AUTO,
    LOG_FORMATS,
    LOG_LEVELS,
    is_local,
    means_all_interfaces,
)

if TYPE_CHECKING:
    from cogment_model_registry.settings.base import (
        ServiceSettings,
        Setting,
        TlsSettings,
        all_settings,
        check_tls,
        requires_client_certificate,
    )
    from cogment_model_registry.settings.directory import DirectorySettings
    from cogment_model_registry.settings.model_registry import Settings, check_archive

__all__ = [
    "ALL_INTERFACES",
    "AUTO",
    "GIB",
    "KIB",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "MIB",
    "DirectorySettings",
    "ServiceSettings",
    "Setting",
    "Settings",
    "TlsSettings",
    "all_settings",
    "check_archive",
    "check_tls",
    "is_local",
    "means_all_interfaces",
    "requires_client_certificate",
]

_MODULES = {
    "DirectorySettings": "directory",
    "ServiceSettings": "base",
    "Setting": "base",
    "Settings": "model_registry",
    "TlsSettings": "base",
    "all_settings": "base",
    "check_archive": "model_registry",
    "check_tls": "base",
    "requires_client_certificate": "base",
}


def __getattr__(name: str) -> Any:
    # The settings are the server's: the client, which needs the kinds alone, does not load them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
