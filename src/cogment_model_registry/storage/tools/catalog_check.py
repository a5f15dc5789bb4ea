"""Verification of an archive directory with its database: the records in the database against the files.

The files are what counts, so most differences are no problem: a start makes up for them. The problems are a database
that a server does not start with, and what people lose when a server starts: a version that is another one than that of
which they said something, and an alias that points to nothing.

A database that a server uses runs ahead of the files or behind them for a moment, and is compared with them again.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from sqlite3 import Connection

from cogment_model_registry.errors import counted, quoted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.catalog import tables
from cogment_model_registry.storage.catalog.snapshot import Flaw, UnusableCatalogError, opened_snapshot
from cogment_model_registry.storage.filesystem import layout, model_files, verification
from cogment_model_registry.storage.filesystem.findings import Finding, Kind
from cogment_model_registry.storage.filesystem.model_files import Fault
from cogment_model_registry.storage.filesystem.verification import Report
from cogment_model_registry.storage.tools.place import ArchivePlace

_COMPARISONS = 4
_PAUSE_SECONDS = 0.5
"""How often, and how long after each other, what a working server may be about to change is compared."""

_KINDS = {
    Flaw.NOT_A_FILE: Kind.CATALOG_NOT_A_FILE,
    Flaw.DAMAGED: Kind.CATALOG_DAMAGED,
    Flaw.OF_ANOTHER_PROGRAM: Kind.CATALOG_OF_ANOTHER_PROGRAM,
    Flaw.NEWER: Kind.CATALOG_NEWER,
    Flaw.UNREADABLE: Kind.UNREADABLE,
}

Versions = dict[str, set[int]]
"""Numbers of versions by model."""


def verify(place: ArchivePlace, *, is_claimed: bool = False, advance: Callable[[int], None]) -> Report:
    """Verify an archive, its database included; nothing is written.

    Args:
        place: The archive.
        is_claimed: Whether this process owns the archive, so that nothing in it changes.
        advance: Called with the bytes of versions that were read.

    Raises:
        OSError: The directory cannot be listed, or the process is short of a resource.
    """
    check = _CatalogCheck(place, is_claimed=is_claimed)
    with check.opened():
        report = verification.verify(
            place.files, place.root, is_claimed=is_claimed, advance=advance, on_version=check.see
        )
        report.findings += check.findings()
    report.findings.sort(key=lambda finding: finding.position)
    return report


class _CatalogCheck:
    """One comparison of a database with the files."""

    def __init__(self, place: ArchivePlace, *, is_claimed: bool) -> None:
        self._place = place
        self._files = place.files
        self._root = place.root
        self._is_claimed = is_claimed
        self._copy: Connection | None = None
        self._flaw: Finding | None = None
        self._recorded: Versions = {}
        self._seen: Versions = defaultdict(set)
        self._suspicious: set[tuple[str, int]] = set()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Return a context manager for the verification of the files."""
        with contextlib.ExitStack() as stack:
            try:
                self._copy = stack.enter_context(opened_snapshot(self._place.database, self._is_in_use))
                self._recorded = tables.numbers(self._copy) if self._copy is not None else {}
            except UnusableCatalogError as error:
                self._flaw = finding_of(error)
            yield

    def _is_in_use(self) -> bool:
        return not self._is_claimed and self._place.is_in_use()

    def see(self, info: VersionInfo) -> None:
        """Compare a version, whose metadata is sound, with its record."""
        self._seen[info.model_id].add(info.number)
        if self._copy is not None and info.archived and tables.info_of(self._copy, info.model_id, info.number) != info:
            self._suspicious.add((info.model_id, info.number))

    def findings(self) -> list[Finding]:
        """Return what there is to say of the database, once all versions have been seen."""
        if self._flaw is not None:
            return [self._flaw]
        if self._copy is None:
            return [*self._log_without_database()]
        self._suspicious.update(
            (model_id, number)
            for model_id, numbers in self._recorded.items()
            for number in numbers - self._seen[model_id]
        )
        found = self._compare(self._copy)
        try:
            for _ in range(_COMPARISONS):
                if not found or not self._is_in_use():
                    break
                time.sleep(_PAUSE_SECONDS)
                self._suspicious = {(each.model_id, each.number) for each in found if each.number}
                with opened_snapshot(self._place.database, self._is_in_use) as copy:
                    found = self._compare(copy) if copy is not None else []
        except UnusableCatalogError as error:
            return [finding_of(error)]
        return found

    def _log_without_database(self) -> Iterator[Finding]:
        name = f"{layout.CATALOG_NAME}-wal"
        with contextlib.suppress(FileNotFoundError):
            if self._files.status_of(self._root, name).st_size:
                yield Finding(Kind.CATALOG_LOG_ALONE, name, "it is the log of a database that is missing")

    def _compare(self, copy: Connection) -> list[Finding]:
        """Compare what is suspicious with its record; what a working server may be about to add is not reported."""
        found: list[Finding] = []
        lacking: Versions = defaultdict(set)
        for model_id, number in sorted(self._suspicious):
            record = tables.info_of(copy, model_id, number)
            stored = self._stored(model_id, number)
            if record is None:
                lacking[model_id].update([number] if stored else [])
            elif stored is None:
                found += _without_files(copy, model_id, number)
            elif isinstance(stored, VersionInfo) and stored != record:
                found.append(_different(record, stored))
        if not self._is_in_use():  # a server adds them in the background
            found += [_lacking(model_id, numbers) for model_id, numbers in lacking.items() if numbers]
        return found

    def _stored(self, model_id: str, number: int) -> VersionInfo | bool | None:
        """Return a version of the files; None for none, False when it is damaged, which is a finding of its own."""
        try:
            directory = self._files.open_directory(self._root, model_id)
        except OSError:
            return None
        try:
            if model_files.is_marked(self._files, directory):
                return None
            return model_files.read_version(self._files, directory, model_id, number)[0]
        except FileNotFoundError:
            return None
        except Fault:
            return False
        finally:
            self._files.close(directory)


def _different(record: VersionInfo, stored: VersionInfo) -> Finding:
    what = [
        name
        for name, is_same in (
            ("time", record.created_ns == stored.created_ns),
            ("hash", record.data_hash == stored.data_hash),
            ("size", record.data_size_bytes == stored.data_size_bytes),
            ("user_data", record.user_data == stored.user_data),
        )
        if not is_same
    ]
    message = f"version {stored.number} of model {quoted(stored.model_id)} has another {' and '.join(what)} in it"
    if not what:
        message = (
            f"version {stored.number} of model {quoted(stored.model_id)} is archived in it, and transient in its file"
        )
    return Finding(Kind.CATALOG_VERSION_DIFFERS, layout.CATALOG_NAME, message, record.model_id, record.number)


def _without_files(copy: Connection, model_id: str, number: int) -> Iterator[Finding]:
    aliases = [alias.name for alias in tables.aliases_of(copy, model_id) if alias.version_number == number]
    for alias in aliases:
        message = f"alias {quoted(alias)} of model {quoted(model_id)} points to version {number}, which has no files"
        yield Finding(Kind.ALIAS_WITHOUT_VERSION, layout.CATALOG_NAME, message, model_id, number)
    if not aliases:
        message = f"it has version {number} of model {quoted(model_id)}, which has no files"
        yield Finding(Kind.CATALOG_VERSION_GONE, layout.CATALOG_NAME, message, model_id, number)


def finding_of(error: UnusableCatalogError) -> Finding:
    """Return the finding that the database is not readable."""
    return Finding(_KINDS[error.flaw], layout.CATALOG_NAME, error.message)


def _lacking(model_id: str, numbers: set[int]) -> Finding:
    versions = f"{counted(len(numbers), 'version')} of model {quoted(model_id)}, up to number {max(numbers)}"
    return Finding(Kind.CATALOG_LACKS_VERSIONS, layout.CATALOG_NAME, f"it lacks {versions}", model_id)
