"""The events of a watch."""

from dataclasses import dataclass
from typing import TypeAlias

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.lifecycle import ModelSummary, Version
from cogment_model_registry.records.notebooks import Shown
from cogment_model_registry.records.versions import VersionInfo


@dataclass(frozen=True, slots=True)
class Gap(Shown):
    """Versions that a watcher does not receive: they are gone, or their numbers were never given.

    Attributes:
        model_id: Their model.
        first_number: The lowest number.
        last_number: The highest number.
    """

    model_id: str
    first_number: int
    last_number: int


@dataclass(frozen=True, slots=True)
class Saved(Shown):
    """A version whose bytes are in a file.

    Attributes:
        version: The version.
        path: The file.
    """

    version: VersionInfo
    path: str


@dataclass(frozen=True, slots=True)
class Gone(Shown):
    """A version that a watcher has received and that no longer exists, or a whole model.

    Attributes:
        model_id: The model.
        version_number: The version; None for the whole model.
        reason: Why, such as ``deleted`` or ``evicted``.
    """

    model_id: str
    version_number: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything that existed when a watch began has been sent."""


Event: TypeAlias = Version | ModelSummary | Gap | Gone | CaughtUp
"""An event of a watch."""


@dataclass(frozen=True, slots=True)
class News(Shown):
    """An event, and where to go on after it.

    Attributes:
        event: A version, a model that exists or has changed, versions that are gone, what a consumer reports, or that
            all that existed has come.
        resume_token: Resumes after it, in this process or in another one.
    """

    event: Event | Consumer
    resume_token: str
