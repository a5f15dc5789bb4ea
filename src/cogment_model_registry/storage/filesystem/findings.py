"""The findings of a verification: each kind has a stable name."""

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """The kinds of findings. The names are for programs, and never change their meaning."""

    VERSION_METADATA_DAMAGED = "version_metadata_damaged"
    VERSION_METADATA_NOT_A_FILE = "version_metadata_not_a_file"
    DATA_MISSING = "data_missing"
    DATA_NOT_A_FILE = "data_not_a_file"
    DATA_WRONG_SIZE = "data_wrong_size"
    DATA_WRONG_HASH = "data_wrong_hash"
    MODEL_METADATA_DAMAGED = "model_metadata_damaged"
    MODEL_METADATA_NOT_A_FILE = "model_metadata_not_a_file"
    MODEL_METADATA_MISSING = "model_metadata_missing"
    HIGH_WATER_MARK_DAMAGED = "high_water_mark_damaged"
    HIGH_WATER_MARK_NOT_A_FILE = "high_water_mark_not_a_file"
    LOCK_NOT_A_FILE = "lock_not_a_file"
    UNREADABLE = "unreadable"
    DATA_WITHOUT_MODEL = "data_without_model"
    DATA_WITHOUT_METADATA = "data_without_metadata"
    TEMPORARY_FILE = "temporary_file"
    DOOMED_DIRECTORY = "doomed_directory"
    HIGH_WATER_MARK_LOW = "high_water_mark_low"
    FOREIGN_ENTRY = "foreign_entry"
    NOT_A_MODEL = "not_a_model"
    CATALOG_DAMAGED = "catalog_damaged"
    CATALOG_NOT_A_FILE = "catalog_not_a_file"
    CATALOG_OF_ANOTHER_PROGRAM = "catalog_of_another_program"
    CATALOG_NEWER = "catalog_newer"
    CATALOG_LOG_ALONE = "catalog_log_alone"
    CATALOG_VERSION_DIFFERS = "catalog_version_differs"
    ALIAS_WITHOUT_VERSION = "alias_without_version"
    CATALOG_VERSION_GONE = "catalog_version_gone"
    CATALOG_LACKS_VERSIONS = "catalog_lacks_versions"

    __str__ = str.__str__


MEANINGS = {
    Kind.VERSION_METADATA_DAMAGED: "the metadata of a version is empty, not YAML, too large, or of another version",
    Kind.VERSION_METADATA_NOT_A_FILE: "the metadata of a version is a link, a FIFO, a directory or a device",
    Kind.DATA_MISSING: "a version has metadata but no data",
    Kind.DATA_NOT_A_FILE: "the data of a version is a link, a FIFO, a directory or a device",
    Kind.DATA_WRONG_SIZE: "the data of a version has another size than its metadata says",
    Kind.DATA_WRONG_HASH: "the data of a version has another hash than its metadata says",
    Kind.MODEL_METADATA_DAMAGED: "the metadata of a model is empty, not YAML, too large, or of another model",
    Kind.MODEL_METADATA_NOT_A_FILE: "the metadata of a model is a link, a FIFO, a directory or a device",
    Kind.MODEL_METADATA_MISSING: "a model has versions but no metadata",
    Kind.HIGH_WATER_MARK_DAMAGED: "the high-water mark of a model is not a number",
    Kind.HIGH_WATER_MARK_NOT_A_FILE: "the high-water mark of a model is a link, a FIFO, a directory or a device",
    Kind.LOCK_NOT_A_FILE: "the lock is a link, a FIFO, a directory or a device, so no server starts",
    Kind.UNREADABLE: "a file or a directory cannot be read",
    Kind.DATA_WITHOUT_MODEL: "a directory has data of versions but no metadata at all, so it is not a model",
    Kind.DATA_WITHOUT_METADATA: "an interrupted store left data that is not a version",
    Kind.TEMPORARY_FILE: "an interrupted store left a file that was being written",
    Kind.DOOMED_DIRECTORY: "an interrupted deletion or import left a model, under a temporary name or marked",
    Kind.HIGH_WATER_MARK_LOW: "a high-water mark is below the highest number, which is used instead",
    Kind.FOREIGN_ENTRY: "something that does not belong to an archive, and is left alone",
    Kind.NOT_A_MODEL: "a directory that is not a model, and is left alone",
    Kind.CATALOG_DAMAGED: "the database of aliases, tags and metrics is damaged, so no server starts",
    Kind.CATALOG_NOT_A_FILE: "the database is a link, a FIFO, a directory or a device",
    Kind.CATALOG_OF_ANOTHER_PROGRAM: "the database is one of another program, so no server starts",
    Kind.CATALOG_NEWER: "the database was written by a newer release, so no server of this one starts",
    Kind.CATALOG_LOG_ALONE: "the database is missing, and its log is there: its aliases, tags and metrics are lost",
    Kind.CATALOG_VERSION_DIFFERS: "the database has another version under the number; the next start forgets that one",
    Kind.ALIAS_WITHOUT_VERSION: "an alias points to a version without files; the next start removes the alias",
    Kind.CATALOG_VERSION_GONE: "the database has a version without files and aliases; the next start forgets it",
    Kind.CATALOG_LACKS_VERSIONS: "the database lacks versions, which the next start adds",
}

INFORMATION = {
    Kind.HIGH_WATER_MARK_LOW,
    Kind.FOREIGN_ENTRY,
    Kind.NOT_A_MODEL,
    Kind.CATALOG_VERSION_GONE,
    Kind.CATALOG_LACKS_VERSIONS,
}
"""Kinds that are not problems: a server works the same with and without them."""

MAY_BE_UNDER_WAY = {Kind.DATA_WITHOUT_METADATA, Kind.TEMPORARY_FILE, Kind.DOOMED_DIRECTORY}
"""Kinds that a working server or import makes and removes all the time."""

_REPAIR = "run the command again with --repair, while no server uses the archive"
_VERSION = (
    "restore both files of the version, .yaml and .data, from a backup; without one, move both out of the archive to "
    "give the version up; then send SIGHUP to a server that uses the archive"
)
_MODEL = (
    "restore the file from a backup; without one, move it out of the archive and use --repair, which writes a new "
    "one without user_data"
)

_CATALOG = (
    "restore the database from a backup; without one, run the command again with --repair, while no server uses the "
    "archive: it saves what can be read"
)

REMEDIES = {
    Kind.VERSION_METADATA_DAMAGED: _VERSION,
    Kind.VERSION_METADATA_NOT_A_FILE: _VERSION,
    Kind.DATA_MISSING: _VERSION,
    Kind.DATA_NOT_A_FILE: _VERSION,
    Kind.DATA_WRONG_SIZE: _VERSION,
    Kind.DATA_WRONG_HASH: _VERSION,
    Kind.MODEL_METADATA_DAMAGED: _MODEL,
    Kind.MODEL_METADATA_NOT_A_FILE: _MODEL,
    Kind.MODEL_METADATA_MISSING: _REPAIR,
    Kind.HIGH_WATER_MARK_DAMAGED: _REPAIR,
    Kind.HIGH_WATER_MARK_NOT_A_FILE: _REPAIR,
    Kind.LOCK_NOT_A_FILE: "remove it while no server uses the archive; the next server makes a new one",
    Kind.UNREADABLE: "give the user of the command and of the server the right to read it, or look at the disk",
    Kind.DATA_WITHOUT_MODEL: "restore the metadata from a backup; without one, move the directory out of the archive",
    Kind.DATA_WITHOUT_METADATA: _REPAIR,
    Kind.TEMPORARY_FILE: _REPAIR,
    Kind.DOOMED_DIRECTORY: _REPAIR,
    Kind.CATALOG_DAMAGED: _CATALOG,
    Kind.CATALOG_NOT_A_FILE: _CATALOG,
    Kind.CATALOG_OF_ANOTHER_PROGRAM: _CATALOG,
    Kind.CATALOG_NEWER: "start the newer release; or move the file away, which loses aliases, tags and metrics",
    Kind.CATALOG_LOG_ALONE: _CATALOG,
    Kind.CATALOG_VERSION_DIFFERS: _REPAIR,
    Kind.ALIAS_WITHOUT_VERSION: (
        "restore both files of the version, .yaml and .data, from a backup; without one, run the command again with "
        "--repair, which removes the alias"
    ),
}
"""What to do about each kind of problem."""

AFTER_REPAIR = "remove the reason that its line gives, and repair the archive again"
"""What to do about a problem that a repair tried to repair."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        kind: Its kind.
        file: The file, with the directory of the model if it is in one.
        message: A sentence about it.
        model_id: The model that it is about, empty if it is about none.
        number: The number of the version that it is about, 0 if it is about none.
    """

    kind: Kind
    file: str
    message: str
    model_id: str = ""
    number: int = 0

    @property
    def is_problem(self) -> bool:
        """Whether it is a problem."""
        return self.kind not in INFORMATION

    @property
    def remedy(self) -> str:
        """What to do about it; empty if it is no problem."""
        return REMEDIES.get(self.kind, "")

    @property
    def position(self) -> tuple[str, int, str, str]:
        """The sort key: the place, then the number within a model."""
        return self.file.partition("/")[0], self.number, self.file, self.kind
