"""Copies of models from one archive directory to another, of which only what is new is copied.

The metadata of a version never changes, so a version whose metadata is the same in both directories is the same. Data
is checked against its hash while it is copied. In the target, the data of a version is durable before its metadata
comes, and goes after its metadata, so every version there is whole, also if the process or the power ends. What is
damaged in the source replaces nothing in the target.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.filesystem import layout, model_files
from cogment_model_registry.storage.filesystem.files import Files, sync_file_system
from cogment_model_registry.storage.filesystem.findings import Finding
from cogment_model_registry.storage.filesystem.model_files import Fault

_MANY = 16
"""So many files take longer to sync one by one than the rest of the file system takes, as a rule."""


@dataclass(slots=True)
class Copied:
    """What was done.

    Attributes:
        models: How many models the source has.
        versions: How many versions were copied.
        data_bytes: How many bytes they have.
        unchanged: How many versions the target had already.
        removed: How many versions were removed from the target.
        findings: What is damaged in the source.
    """

    models: int = 0
    versions: int = 0
    data_bytes: int = 0
    unchanged: int = 0
    removed: int = 0
    findings: list[Finding] = field(default_factory=list)


class Outcome(Enum):
    """What became of a version that was to be copied."""

    THERE = auto()
    GONE = auto()
    DAMAGED = auto()


class ModelCopy:
    """A copy of models.

    Args:
        source: The file operations of the source, and the descriptor of its archive directory.
        target: The same of the target, which this process owns.
        advance: Called with the bytes of versions that were read.
    """

    def __init__(self, source: tuple[Files, int], target: tuple[Files, int], advance: Callable[[int], None]) -> None:
        self._source_files, self._source_root = source
        self._target_files, self._target_root = target
        self._advance = advance
        self.copied = Copied()

    def model_ids(self) -> list[str]:
        """Return the names of the directories of the source that may be models."""
        return _model_ids(self._source_files, self._source_root)

    def copy(self, model_id: str, numbers: Iterable[int] | None = None) -> dict[int, Outcome]:
        """Copy a model; return what became of each version that was to be copied.

        Args:
            model_id: The model.
            numbers: The versions; all that exist when None.
        """
        with self._opened(self._source_files, self._source_root, model_id) as source:
            found = model_files.list_model(self._source_files, source, model_id) if source is not None else None
            if source is None or found is None or not found.is_model:
                return dict.fromkeys(numbers or (), Outcome.GONE)
            self.copied.models += numbers is None
            with self._opened_target(model_id) as target:
                one = _OneModel(self._source_files, source, self._target_files, target, model_id)
                outcomes = one.run(sorted(found.metadata if numbers is None else numbers), self.copied, self._advance)
        return outcomes

    def remove_what_is_gone(self, keep: set[tuple[str, int]]) -> None:
        """Remove from the target what the source does not have any more.

        Args:
            keep: Versions, as models and numbers, that stay in any case.
        """
        for model_id in _model_ids(self._target_files, self._target_root):
            with (
                self._opened(self._source_files, self._source_root, model_id) as source,
                self._opened(self._target_files, self._target_root, model_id) as target,
            ):
                if target is None:
                    continue
                kept = self._remove_versions(source, target, model_id, keep)
            if source is None and not kept:
                self._remove_model(model_id)

    def _remove_versions(self, source: int | None, target: int, model_id: str, keep: set[tuple[str, int]]) -> int:
        """Remove versions that are gone; return how many stay."""
        found = model_files.list_model(self._target_files, target, model_id)
        gone = [
            number
            for number in found.metadata
            if (model_id, number) not in keep
            and (source is None or not _exists(self._source_files, source, layout.version_file_name(model_id, number)))
        ]
        for number in gone:
            self._target_files.remove(target, layout.version_file_name(model_id, number))
        if gone:
            self._target_files.sync_directory(target)
        for number in {*gone, *(found.data.keys() - found.metadata.keys())}:
            self._target_files.remove(target, layout.data_file_name(model_id, number))
        self.copied.removed += len(gone)
        return len(found.metadata) - len(gone)

    def _remove_model(self, model_id: str) -> None:
        temporary = layout.temporary_name()
        self._target_files.rename(self._target_root, model_id, temporary)
        self._target_files.sync_directory(self._target_root)
        self._target_files.remove_tree(self._target_root, temporary, lambda _error: None)

    @contextlib.contextmanager
    def _opened(self, files: Files, root: int, model_id: str) -> Iterator[int | None]:
        """Return a context manager with a descriptor of a model's directory; None when there is no such model."""
        try:
            directory = files.open_directory(root, model_id)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        try:
            yield None if model_files.is_marked(files, directory) else directory
        finally:
            files.close(directory)

    @contextlib.contextmanager
    def _opened_target(self, model_id: str) -> Iterator[int]:
        if not _exists(self._target_files, self._target_root, model_id):
            self._target_files.make_directory(self._target_root, model_id)
            self._target_files.sync_directory(self._target_root)
        directory = self._target_files.open_directory(self._target_root, model_id)
        try:
            yield directory
        finally:
            self._target_files.close(directory)


class _OneModel:
    """A copy of a model: data first, then metadata, each made durable as a whole."""

    def __init__(self, source_files: Files, source: int, target_files: Files, target: int, model_id: str) -> None:
        self._source_files = source_files
        self._source = source
        self._files = target_files
        self._target = target
        self._model_id = model_id
        self._fresh: list[tuple[int, bytes]] = []
        self._by_hash: dict[str, int] = {}

    def run(self, numbers: list[int], copied: Copied, advance: Callable[[int], None]) -> dict[int, Outcome]:
        for name in model_files.list_model(self._files, self._target, self._model_id).temporary:
            self._files.remove(self._target, name)
        outcomes = {number: self._copy(number, copied, advance) for number in numbers}
        self._sync_data([layout.data_file_name(self._model_id, number) for number, _ in self._fresh])
        texts = [(layout.version_file_name(self._model_id, number), text) for number, text in self._fresh]
        self._put([*self._changed(layout.model_file_name(self._model_id)), *texts])
        # Last: it is at least as high as any number that was copied.
        self._put([*self._changed(layout.HIGH_WATER_MARK_NAME)])
        return outcomes

    def _copy(self, number: int, copied: Copied, advance: Callable[[int], None]) -> Outcome:
        """Copy the data of a version unless the target has it."""
        try:
            info, text = model_files.read_version(self._source_files, self._source, self._model_id, number)
            if self._has(number, text, info.data_size_bytes):
                copied.unchanged += 1
                advance(info.data_size_bytes)
                self._by_hash[info.data_hash] = number
                return Outcome.THERE
            with model_files.opened_data(self._source_files, self._source, info) as file:
                # Versions that share their bytes in the source do so in the target.
                is_shared = self._source_files.status(file).st_nlink > 1
                if not (is_shared and self._link(number, info)):
                    self._put_data(number, model_files.data_blocks(self._source_files, file, info), advance)
        except FileNotFoundError:
            return Outcome.GONE
        except Fault as fault:
            name = f"{self._model_id}/{fault.name}"
            finding = Finding(fault.kind, name, fault.message, self._model_id, number)
            copied.findings += [finding] if finding not in copied.findings else []
            return Outcome.DAMAGED
        self._fresh.append((number, text))
        self._by_hash[info.data_hash] = number
        copied.versions += 1
        copied.data_bytes += info.data_size_bytes
        return Outcome.THERE

    def _has(self, number: int, text: bytes, size_bytes: int) -> bool:
        """Return whether the target has a version."""
        try:
            status = self._files.status_of(self._target, layout.data_file_name(self._model_id, number))
        except FileNotFoundError:
            return False
        return status.st_size == size_bytes and text == self._text(layout.version_file_name(self._model_id, number))

    def _text(self, name: str) -> bytes | None:
        try:
            return model_files.read_metadata(self._files, self._target, name)
        except (OSError, layout.BadMetadata):
            return None

    def _link(self, number: int, info: VersionInfo) -> bool:
        """Let a version share the bytes of another one in the target; return whether that was possible."""
        other = self._by_hash.get(info.data_hash)
        if other is None:
            return False
        temporary = layout.temporary_name()
        try:
            self._files.link(self._target, layout.data_file_name(self._model_id, other), temporary)
        except OSError:
            return False
        self._give_name(temporary, number)
        self._files.remove(self._target, temporary)  # a rename to another name of the same file does nothing
        return True

    def _put_data(self, number: int, blocks: Iterable[bytes], advance: Callable[[int], None]) -> None:
        """Write data under its name, once all of it was checked."""
        temporary = layout.temporary_name()
        file = self._files.create(self._target, temporary)
        try:
            for block in blocks:
                self._files.write(file, [block])
                advance(len(block))
            self._give_name(temporary, number)
        except BaseException:
            self._files.remove(self._target, temporary)
            raise
        finally:
            self._files.close(file)

    def _give_name(self, temporary: str, number: int) -> None:
        """Let a temporary file be the data of a version; one that had the number before goes first."""
        name = layout.version_file_name(self._model_id, number)
        if _exists(self._files, self._target, name):
            self._files.remove(self._target, name)
            self._files.sync_directory(self._target)
        self._files.rename(self._target, temporary, layout.data_file_name(self._model_id, number))

    def _changed(self, name: str) -> Iterator[tuple[str, bytes]]:
        """Yield a small file of the model, if it exists and differs from that of the target."""
        # What is damaged replaces nothing; a server does without it too.
        with contextlib.suppress(OSError, layout.BadMetadata):
            text = model_files.read_metadata(self._source_files, self._source, name)
            if text != self._text(name):
                yield name, text

    def _sync_data(self, names: list[str]) -> None:
        """Make files and their names durable: many at once by one sync of the whole file system, where that exists."""
        if not names or (len(names) >= _MANY and sync_file_system(self._target)):
            return
        for name in names:
            file = self._files.open_to_read(self._target, name)
            try:
                self._files.sync_file(file)
            finally:
                self._files.close(file)
        self._files.sync_directory(self._target)

    def _put(self, texts: list[tuple[str, bytes]]) -> None:
        """Write small files, each whole or not at all, and durably."""
        temporary = [(layout.temporary_name(), name) for name, _ in texts]
        for (temporary_name, _), (_, text) in zip(temporary, texts, strict=True):
            file = self._files.create(self._target, temporary_name)
            try:
                self._files.write(file, [text])
            finally:
                self._files.close(file)
        self._sync_data([temporary_name for temporary_name, _ in temporary])
        for temporary_name, name in temporary:
            self._files.rename(self._target, temporary_name, name)
        if texts:
            self._files.sync_directory(self._target)


def _exists(files: Files, directory: int, name: str) -> bool:
    try:
        files.status_of(directory, name)
    except FileNotFoundError:
        return False
    return True


def _model_ids(files: Files, root: int) -> list[str]:
    return sorted(
        entry.name
        for entry in files.list_directory(root)
        if entry.is_directory and model_files.is_model_id(entry.name) and entry.name != layout.LOST_AND_FOUND
    )
