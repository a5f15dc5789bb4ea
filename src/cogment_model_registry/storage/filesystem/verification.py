"""Verification of an archive directory: every name, every metadata file, every byte against its hash.

Nothing is written, no link is followed, and the lock is not held, so a server may run or start on the directory. What
its normal work leaves for a moment is not a finding then: a temporary file may be an upload under way, data without
metadata may get its metadata next, and a file that was deleted during the check was not missing.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cogment_model_registry.errors import counted
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.filesystem import layout, model_files
from cogment_model_registry.storage.filesystem.claim import find_holder
from cogment_model_registry.storage.filesystem.files import Entry, Files, NotRegularError
from cogment_model_registry.storage.filesystem.findings import MAY_BE_UNDER_WAY, Finding, Kind
from cogment_model_registry.storage.filesystem.model_files import Fault, ModelFiles


@dataclass(slots=True)
class Report:
    """The result of a verification.

    Attributes:
        models: The number of models.
        versions: The number of versions, sound or not.
        data_bytes: How many bytes of versions were read.
        holder: The process that owns the archive, empty for none.
        findings: The findings, ordered.
    """

    models: int = 0
    versions: int = 0
    data_bytes: int = 0
    holder: str = ""
    findings: list[Finding] = field(default_factory=list)


def data_size_bytes(files: Files, root: int) -> int:
    """Return about how many bytes of versions an archive has, for a progress bar."""
    total = 0
    for entry in files.list_directory(root):
        if not entry.is_directory or not model_files.is_model_id(entry.name):
            continue
        try:
            directory = files.open_directory(root, entry.name)
        except OSError:
            continue
        try:
            with contextlib.suppress(OSError):  # reading it will report the error
                total += model_files.data_size_bytes(files, directory, entry.name)
        finally:
            files.close(directory)
    return total


def verify(
    files: Files,
    root: int,
    *,
    is_claimed: bool = False,
    advance: Callable[[int], None],
    on_version: Callable[[VersionInfo], None] = lambda _info: None,
) -> Report:
    """Verify an archive, without its database.

    Args:
        files: The file operations.
        root: Descriptor of the archive directory.
        is_claimed: Whether this process owns the archive, so that nothing in it changes.
        advance: Called with the bytes of versions that were read.
        on_version: Called with each version whose metadata is sound.

    Raises:
        OSError: The directory cannot be listed, or the process is short of a resource.
    """
    verification = _Verification(files, root, advance, on_version)
    return verification.run(is_claimed=is_claimed)


class _Verification:
    """One verification of an archive."""

    def __init__(
        self, files: Files, root: int, advance: Callable[[int], None], on_version: Callable[[VersionInfo], None]
    ) -> None:
        self._files = files
        self._root = root
        self._advance = advance
        self._on_version = on_version
        self._report = Report()

    def run(self, *, is_claimed: bool) -> Report:
        report = self._report
        before = "" if is_claimed else self._holder()
        for entry in sorted(self._files.list_directory(self._root), key=lambda entry: entry.name):
            self._check_entry(entry)
        if not is_claimed:
            report.holder = self._holder() or before
            report.findings = [finding for finding in report.findings if self._is_left_behind(finding)]
        report.findings.sort(key=lambda finding: finding.position)
        return report

    def _holder(self) -> str:
        try:
            holder = find_holder(self._files, self._root)
        except OSError:
            return ""  # the entry of the lock becomes a finding
        return holder.process if holder else ""

    def _is_left_behind(self, finding: Finding) -> bool:
        """Return whether a finding cannot be the work of a server that runs, or ran during the verification."""
        if finding.kind not in MAY_BE_UNDER_WAY:
            return True
        if self._report.holder:
            return False
        parent, _, name = finding.file.rpartition("/")
        if not parent:
            return self._has(self._root, name)
        try:
            directory = self._files.open_directory(self._root, parent)
        except FileNotFoundError:
            return False
        try:
            is_version = finding.number and self._has(
                directory, layout.version_file_name(finding.model_id, finding.number)
            )
            return self._has(directory, name) and not is_version
        finally:
            self._files.close(directory)

    def _has(self, directory: int, name: str) -> bool:
        try:
            self._files.status_of(directory, name)
        except FileNotFoundError:
            return False
        return True

    def _check_entry(self, entry: Entry) -> None:
        """Check an entry of the archive directory."""
        if entry.name == layout.LOCK_NAME:
            self._check_lock()
        elif entry.name in (layout.FORMAT_NAME, layout.BACKUP_NAME):
            pass  # the format was checked before anything else
        elif entry.name in layout.CATALOG_NAMES:
            pass  # it is compared with the files: see `storage.tools.catalog_check`
        elif layout.is_temporary(entry.name) and entry.is_directory:
            self._add(Kind.DOOMED_DIRECTORY, entry.name, "what is left of a model that was deleted or imported")
        elif not entry.is_directory:
            self._add(Kind.FOREIGN_ENTRY, entry.name, "it is not part of an archive")
        elif not model_files.is_model_id(entry.name):
            self._add(Kind.NOT_A_MODEL, entry.name, "its name is not a model id")
        else:
            self._check_directory(entry.name)

    def _check_lock(self) -> None:
        try:
            self._files.close(self._files.open_to_read(self._root, layout.LOCK_NAME))
        except FileNotFoundError:
            pass
        except NotRegularError:
            self._add(Kind.LOCK_NOT_A_FILE, layout.LOCK_NAME, "it is not a regular file: no server can start")
        except OSError as error:
            fault = model_files.unreadable(layout.LOCK_NAME, error)
            self._add(fault.kind, fault.name, fault.message)

    def _check_directory(self, model_id: str) -> None:
        """Check a directory that may be a model."""
        try:
            directory = self._files.open_directory(self._root, model_id)
        except FileNotFoundError:
            return
        except OSError as error:
            if model_id == layout.LOST_AND_FOUND:
                self._add(Kind.NOT_A_MODEL, model_id, "it belongs to the file system")
                return
            fault = model_files.unreadable(model_id, error)
            self._add(fault.kind, fault.name, fault.message, model_id)
            return
        try:
            found = model_files.list_model(self._files, directory, model_id)
            if found.is_deleted:
                name = f"{model_id}/{layout.DELETION_MARK_NAME}"
                self._add(Kind.DOOMED_DIRECTORY, name, "what is left of a model that was deleted", model_id)
            elif found.is_model:
                self._check_model(directory, model_id, found)
            elif found.data and model_files.is_still(self._files, self._root, directory, model_id):
                # Neither a store nor a deletion leaves this: someone removed the metadata.
                message = f"it has the data of {counted(len(found.data), 'version')} and no metadata at all"
                self._add(Kind.DATA_WITHOUT_MODEL, model_id, message, model_id)
            elif not found.data:
                self._add(Kind.NOT_A_MODEL, model_id, "it has no metadata of a model or of a version")
        finally:
            self._files.close(directory)

    def _check_model(self, directory: int, model_id: str, found: ModelFiles) -> None:
        check = _ModelCheck(self._files, directory, model_id, self._advance, self._on_version)
        check.run(found)
        if check.findings and not model_files.is_still(self._files, self._root, directory, model_id):
            return  # it was deleted during the check, and so were its files, one by one
        self._report.models += 1
        self._report.versions += check.versions
        self._report.data_bytes += check.data_bytes
        self._report.findings += check.findings

    def _add(self, kind: Kind, name: str, message: str, model_id: str = "") -> None:
        self._report.findings.append(Finding(kind, name, message, model_id))


class _ModelCheck:
    """One verification of a model."""

    def __init__(
        self,
        files: Files,
        directory: int,
        model_id: str,
        advance: Callable[[int], None],
        on_version: Callable[[VersionInfo], None],
    ) -> None:
        self._files = files
        self._directory = directory
        self._model_id = model_id
        self._advance = advance
        self._on_version = on_version
        self.versions = 0
        self.data_bytes = 0
        self.findings: list[Finding] = []

    def run(self, found: ModelFiles) -> None:
        self._check_model_metadata()
        self._check_high_water_mark(found)
        for name in found.temporary:
            self._add(Kind.TEMPORARY_FILE, name, "what is left of a file that was being written")
        for name in found.foreign:
            self._add(Kind.FOREIGN_ENTRY, name, "it is not part of a model")
        for number, is_file in sorted(found.data.items()):
            if number not in found.metadata:
                self._add_orphan(number, is_file=is_file)
        for number in sorted(found.metadata):
            self._check_version(number)

    def _check_model_metadata(self) -> None:
        try:
            model_files.read_model(self._files, self._directory, self._model_id)
        except FileNotFoundError:
            name = layout.model_file_name(self._model_id)
            self._add(Kind.MODEL_METADATA_MISSING, name, "it is missing: the model is served without user_data")
        except Fault as fault:
            self._add_fault(fault)

    def _check_high_water_mark(self, found: ModelFiles) -> None:
        try:
            mark = model_files.read_high_water_mark(self._files, self._directory)
        except FileNotFoundError:
            return  # the original has none
        except Fault as fault:
            self._add_fault(fault)
            return
        if mark < found.last_number:
            message = f"it is {mark}, below the highest number {found.last_number}, which is used instead"
            self._add(Kind.HIGH_WATER_MARK_LOW, layout.HIGH_WATER_MARK_NAME, message)

    def _add_orphan(self, number: int, *, is_file: bool) -> None:
        name = layout.data_file_name(self._model_id, number)
        if is_file:
            self._add(Kind.DATA_WITHOUT_METADATA, name, "it has no metadata, so it is not a version", number)
        else:
            # A store does not leave this.
            self._add(Kind.FOREIGN_ENTRY, name, "it has the name of data, and is not a regular file", number)

    def _check_version(self, number: int) -> None:
        try:
            info, _ = model_files.read_version(self._files, self._directory, self._model_id, number)
            self._on_version(info)
            with model_files.opened_data(self._files, self._directory, info) as file:
                for block in model_files.data_blocks(self._files, file, info):
                    self.data_bytes += len(block)
                    self._advance(len(block))
        except FileNotFoundError:
            return  # deleted during the check
        except Fault as fault:
            self._add_fault(fault, number)
        self.versions += 1

    def _add_fault(self, fault: Fault, number: int = 0) -> None:
        self._add(fault.kind, fault.name, fault.message, number)

    def _add(self, kind: Kind, name: str, message: str, number: int = 0) -> None:
        self.findings.append(Finding(kind, f"{self._model_id}/{name}", message, self._model_id, number))
