"""The settings of the servers: each one's name, kind, default, environment variable and meaning, once.

The command line, its help, the environment and the tables in the documentation derive from the fields of the settings
classes.
"""

from cogment_model_registry.settings.base import ServiceSettings, Setting, all_settings
from cogment_model_registry.settings.directory import DirectorySettings
from cogment_model_registry.settings.kinds import (
    ALL_INTERFACES,
    GIB,
    KIB,
    LOG_FORMATS,
    LOG_LEVELS,
    MIB,
)
from cogment_model_registry.settings.model_registry import Settings

__all__ = [
    "ALL_INTERFACES",
    "GIB",
    "KIB",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "MIB",
    "DirectorySettings",
    "ServiceSettings",
    "Setting",
    "Settings",
    "all_settings",
]
