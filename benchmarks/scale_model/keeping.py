"""What many models and versions take in PostgreSQL and in the object store, and what writing them takes."""

import math
from dataclasses import dataclass

from benchmarks.scale_model.figures import Figures
from benchmarks.scale_model.inputs import GIB, Kept, Machines
from cogment_model_registry.storage.bucket.uploads import PART_BYTES

_OBJECTS_BESIDES_PARTS = 1
"""The record of a version."""

MONTH_SECONDS = 365.25 / 12 * 86_400


@dataclass(frozen=True, slots=True)
class Room:
    """What is kept, in numbers.

    Attributes:
        database_bytes: Tables and indexes of PostgreSQL, without free space in them.
        stored_bytes: Bytes in the object store.
        objects: Objects in it.
        objects_per_version: Objects that a store writes.
    """

    database_bytes: float
    stored_bytes: float
    objects: float
    objects_per_version: float


def room(kept: Kept, figures: Figures) -> Room:
    """Return what is kept."""
    version_bytes = kept.archived_mib * 2**20
    per_version = max(1, math.ceil(version_bytes / PART_BYTES)) + _OBJECTS_BESIDES_PARTS
    return Room(
        database_bytes=kept.versions * figures.version_row + kept.models * figures.model_row,
        stored_bytes=kept.versions * version_bytes,
        objects=kept.versions * per_version + kept.models,
        objects_per_version=per_version,
    )


def stores_per_second(machines: Machines, figures: Figures) -> float:
    """Return how many stores a second keep PostgreSQL as busy as may be planned with."""
    return machines.database_cores * machines.usable * 1000 / figures.small_store_database


def publishes_per_second(machines: Machines, figures: Figures) -> float:
    """Return how many publishes a second keep PostgreSQL as busy as may be planned with."""
    return machines.database_cores * machines.usable * 1000 / figures.small_publish_database


def lookups_per_second(machines: Machines, figures: Figures) -> float:
    """Return how many look-ups of the latest version a second keep PostgreSQL as busy as may be planned with."""
    return machines.database_cores * machines.usable * 1000 / figures.lookup_database


def written_gib_per_second(kept: Kept) -> float:
    """Return what stores write to the object store."""
    return kept.stores_per_second * kept.archived_mib * 2**20 / GIB
