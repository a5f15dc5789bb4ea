"""Repair of an archive directory: everything that can be done without losing something of use.

It removes what a server does not take for a version or a model, and what a server removes itself at its start:
temporary files, models that are being deleted, and data whose metadata was never written. The numbers of such data may
have been seen, so the high-water mark is raised to them first. Damaged versions stay as they are, because their bytes
may be useful; so does damaged metadata of models. Missing metadata of a model is rebuilt without `user_data`, which is
how the model is served anyway; without it the original fails.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from cogment_model_registry.errors import ModelRegistryError, quoted
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.filesystem import model_files
from cogment_model_registry.storage.filesystem.directory import ArchiveDirectory
from cogment_model_registry.storage.filesystem.findings import Finding, Kind
from cogment_model_registry.storage.filesystem.model_files import Fault, ModelFiles

_MARKS = {Kind.HIGH_WATER_MARK_DAMAGED, Kind.HIGH_WATER_MARK_NOT_A_FILE, Kind.HIGH_WATER_MARK_LOW}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the repair of a finding.

    Attributes:
        finding: The finding.
        is_repaired: Whether it was repaired.
        message: What was done, or why not.
    """

    finding: Finding
    is_repaired: bool
    message: str


def repair(archive: ArchiveDirectory, root: int, findings: Sequence[Finding]) -> Iterator[Outcome]:
    """Repair everything that can be repaired safely, and yield the result for each finding that was tried.

    Args:
        archive: The archive, owned by this process since before the verification.
        root: Descriptor of its directory.
        findings: The findings, ordered.

    Raises:
        OSError: A directory cannot be read any more.
    """
    for finding in findings:
        if finding.kind is Kind.DOOMED_DIRECTORY:
            problem = _problem(partial(_remove_doomed, archive, root, finding))
            yield _outcome(finding, problem, "removed with all its files")
    in_models = [finding for finding in findings if "/" in finding.file and finding.kind is not Kind.DOOMED_DIRECTORY]
    for model_id, found in groupby(in_models, key=lambda finding: finding.model_id):
        directory = archive.files.open_directory(root, model_id)
        try:
            yield from _ModelRepair(archive, directory, model_id).run(list(found))
        finally:
            archive.files.close(directory)


def _remove_doomed(archive: ArchiveDirectory, root: int, finding: Finding) -> None:
    if finding.model_id:
        archive.finish_marked_removal(finding.model_id)
        return
    errors: list[OSError] = []
    archive.files.remove_tree(root, finding.file, errors.append)
    if errors:
        raise errors[0]
    archive.files.sync_directory(root)


class _ModelRepair:
    """Repairs a model."""

    def __init__(self, archive: ArchiveDirectory, directory: int, model_id: str) -> None:
        self._archive = archive
        self._files = archive.files
        self._directory = directory
        self._model_id = model_id

    def run(self, findings: Sequence[Finding]) -> Iterator[Outcome]:
        by_kind = {kind: [finding for finding in findings if finding.kind is kind] for kind in Kind}
        for finding in by_kind[Kind.MODEL_METADATA_MISSING]:
            problem = _problem(partial(self._archive.write_model, ModelInfo(self._model_id)))
            yield _outcome(finding, problem, "rebuilt, without user_data")
        contents = model_files.list_model(self._files, self._directory, self._model_id)
        orphans = by_kind[Kind.DATA_WITHOUT_METADATA]
        marks = [finding for finding in findings if finding.kind in _MARKS]
        if marks or orphans:
            problem = _problem(partial(self._raise_high_water_mark, contents.last_number))
            for finding in marks:
                yield _outcome(finding, problem, f"rebuilt: {contents.last_number}")
            for finding in orphans:
                kept = problem or _reason_to_keep(finding, contents)
                yield Outcome(finding, is_repaired=False, message=f"kept: {kept}") if kept else self._remove(finding)
        for finding in by_kind[Kind.TEMPORARY_FILE]:
            yield self._remove(finding)

    def _raise_high_water_mark(self, number: int) -> None:
        """Make sure, durably, that no number up to this one is given again."""
        try:
            mark = model_files.read_high_water_mark(self._files, self._directory)
        except FileNotFoundError:
            mark = -1
        except Fault as fault:
            if fault.kind is Kind.UNREADABLE:
                raise  # it may be higher
            mark = -1
        if mark < number:
            self._archive.write_high_water_mark(self._model_id, number)

    def _remove(self, finding: Finding) -> Outcome:
        return _outcome(finding, _problem(partial(self._remove_file, finding)), "removed")

    def _remove_file(self, finding: Finding) -> None:
        self._files.remove(self._directory, finding.file.removeprefix(f"{self._model_id}/"))
        self._files.sync_directory(self._directory)


def _reason_to_keep(orphan: Finding, contents: ModelFiles) -> str:
    """Return why data without metadata must stay: someone may have put its metadata next to it."""
    stem = f"{orphan.model_id}-v{orphan.number:06d}"
    neighbours = sorted(name for name in contents.foreign if stem in name)
    return f"{quoted(neighbours[0])} is next to it" if neighbours else ""


def _outcome(finding: Finding, problem: str, done: str) -> Outcome:
    return Outcome(finding, is_repaired=not problem, message=problem or done)


def _problem(action: Callable[[], object]) -> str:
    """Run an action, and return why it failed, empty if it did not: the rest can still be repaired."""
    try:
        action()
    except OSError as error:
        return f"it failed: {error.strerror}"
    except ModelRegistryError as error:
        return error.message
    except Fault as fault:
        return f"the high-water mark cannot be raised: {fault.message}"
    return ""
