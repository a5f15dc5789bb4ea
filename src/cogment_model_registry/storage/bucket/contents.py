"""What a listing of a bucket shows of models and versions.

Hints say in their names what records say in their text, so a start reads the record of a version only where its hint is
missing, or where there is one of a void number too: then the record is void, or was about to be. The records that it
read are kept until somebody asks for them.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import structlog

from cogment_model_registry.errors import DataLossError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.holdings import Holdings
from cogment_model_registry.storage.bucket.layout import Hint, ModelRecord
from cogment_model_registry.storage.bucket.objects import Objects
from cogment_model_registry.storage.folder import FolderContents, FolderStamp, KnownFolder

_log = structlog.stdlib.get_logger(__name__)

READS_AT_ONCE = 32
"""How many small objects are read at once."""


@dataclass(slots=True)
class Listing:
    """The names of a bucket, or of one life of a model.

    Attributes:
        versions: The numbers that have a record, by life.
        hints: What hints say, by life and number.
        marks: The highest mark of the numbers of each life.
    """

    versions: dict[str, set[int]] = field(default_factory=dict)
    hints: dict[str, dict[int, Hint]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)


async def list_names(objects: Objects, life: str = "") -> Listing:
    """Return the names of all lives, or of one.

    Raises:
        UnavailableError: The store failed.
    """
    listing = Listing()
    below = f"/{life}" if life else ""

    async def read(prefix: str, take: Callable[[Listing, str], None]) -> None:
        async for chunk in objects.list_names(prefix + below):
            for found in chunk:
                take(listing, found.name)

    # One after the other: what is created in between has its record listed, and a hint that is missing is no harm.
    await read(layout.VERSIONS, _take_version)
    await asyncio.gather(read(layout.HINTS, _take_hint), read(layout.MARKS, _take_mark))
    return listing


def _take_version(listing: Listing, name: str) -> None:
    if version := layout.parse_version_name(name):
        life, number = version
        listing.versions.setdefault(life, set()).add(number)


def _take_hint(listing: Listing, name: str) -> None:
    """Keep a hint, unless there is another one of that number: then its record counts."""
    if found := layout.parse_hint_name(name):
        life, number, hint = found
        hints = listing.hints.setdefault(life, {})
        hints[number] = hint if hints.get(number, hint) == hint else Hint(-1, "")


def _take_mark(listing: Listing, name: str) -> None:
    if mark := layout.parse_mark_name(name):
        life, number = mark
        listing.marks[life] = max(number, listing.marks.get(life, 0))


async def load_models(objects: Objects) -> tuple[dict[str, ModelRecord], list[str]]:
    """Return the models by id, and the names of objects of models that are malformed.

    Raises:
        UnavailableError: The store failed.
    """
    models: dict[str, ModelRecord] = {}
    malformed: list[str] = []
    turns = asyncio.Semaphore(READS_AT_ONCE)

    async def load(name: str) -> None:
        async with turns:
            text = await objects.find(name)
        if text is None:
            return
        try:
            model = layout.parse_model(text, name)
        except layout.BadObject as error:
            _log.error("model not loaded: its object is malformed", name=name, reason=str(error))
            malformed.append(name)
        else:
            if not model.is_ended:
                models[model.info.model_id] = model

    names = [name for name in await objects.all_names(layout.MODELS) if name.endswith(".json")]
    for start in range(0, len(names), READS_AT_ONCE * 8):
        await asyncio.gather(*map(load, names[start : start + READS_AT_ONCE * 8]))
    return models, malformed


async def contents_of(home: Holdings, model: ModelRecord, listing: Listing, known: KnownFolder) -> FolderContents:
    """Return what a model has.

    Args:
        home: What the archive has.
        model: The model.
        listing: The names of its life.
        known: What is known of it from earlier.

    Raises:
        UnavailableError: The store failed.
    """
    life, model_id = model.life, model.info.model_id
    records, hints = listing.versions.get(life, set()), listing.hints.get(life, {})
    sizes_bytes, damaged = await _sizes_of(home, model, records, hints)
    numbers = sorted(sizes_bytes)
    stamp = FolderStamp(int(life, 16), _state_of(numbers))
    # Records do not change, so a version that was known in this life is still the same.
    is_same_life = known.stamp is not None and known.stamp.inode == stamp.inode
    changed = [number for number in numbers if not is_same_life or number not in known.size_bytes]
    for number, reason in damaged.items():
        _log.error("damaged version found", model_id=model_id, number=number, reason=reason)
    return FolderContents(
        info=model.info,
        version_numbers=numbers,
        size_bytes=sizes_bytes,
        damaged=damaged,
        last_number=max(records, default=0),
        high_water_mark=listing.marks.get(life, 0),
        stamp=stamp,
        changed=changed,
        is_plain=not damaged,
        is_as_known=known.is_complete and known.stamp == stamp,
    )


def _state_of(numbers: Sequence[int]) -> int:
    """Return a number that other numbers of versions do not have."""
    digest = sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


async def _sizes_of(
    home: Holdings, model: ModelRecord, numbers: set[int], hints: Mapping[int, Hint]
) -> tuple[dict[int, int], dict[int, str]]:
    """Return the sizes of versions by number, and what is wrong with others; void numbers are in neither."""
    sizes_bytes: dict[int, int] = {}
    damaged: dict[int, str] = {}
    unknown: list[int] = []
    for number in numbers:
        hint = hints.get(number)
        if (model.life, number) in home.doubts:
            continue
        if hint is None or not hint.key:
            unknown.append(number)
        else:
            sizes_bytes[number] = hint.size_bytes
    for start in range(0, len(unknown), READS_AT_ONCE):
        batch = unknown[start : start + READS_AT_ONCE]
        reads = [home.read_record(model.info.model_id, model.life, number) for number in batch]
        for number, found in zip(batch, await asyncio.gather(*reads, return_exceptions=True), strict=True):
            if isinstance(found, DataLossError):
                damaged[number] = found.reason
            elif isinstance(found, BaseException):
                raise found
            elif found is not None:
                sizes_bytes[number] = found.info.data_size_bytes
    return dict(sorted(sizes_bytes.items())), damaged
