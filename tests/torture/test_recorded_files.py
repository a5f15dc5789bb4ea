"""The recorder of file operations, and the states that a power cut may leave."""

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cogment_model_registry.storage.filesystem.files import Files
from tests.torture.cut_disk import Disk, Tree, lay_out
from tests.torture.recorded_files import ProcessKilled, RecordedFiles


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a file in it."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").write_bytes(b"old")
    return tmp_path / "place"


@pytest.fixture
def files(place: Path) -> RecordedFiles:
    return RecordedFiles(place)


@pytest.fixture
def root(files: RecordedFiles, place: Path) -> Iterator[int]:
    descriptor = files.open_root(str(place))
    yield descriptor
    os.close(descriptor)


def write(files: Files, directory: int, name: str, *parts: bytes, sync: bool = False) -> None:
    file = files.create(directory, name)
    for part in parts:
        files.write(file, [part])
    if sync:
        files.sync_file(file)
    files.close(file)


def trees(files: RecordedFiles, limit: int = 1000) -> list[Tree]:
    """Return all states that a power cut may leave now."""
    disk = Disk(files)
    for operation in files.history:
        disk.perform(operation)
    found: list[Tree] = []
    for remains in disk.remains(Random(1), limit):
        if remains.tree not in found:
            found.append(remains.tree)
    return found


def _fail(error: OSError) -> None:
    raise error


def test_existing_files_are_certain(files: RecordedFiles) -> None:
    assert trees(files) == [{"old": b"old"}]


def test_operations_are_performed(files: RecordedFiles, root: int, place: Path) -> None:
    files.make_directory(root, "a")
    write(files, root, "b", b"data")
    files.rename(root, "b", "c")
    files.remove(root, "old")
    assert sorted(os.listdir(place)) == ["a", "c"]
    assert (place / "c").read_bytes() == b"data"


def test_a_name_is_uncertain_until_its_directory_is_synced(files: RecordedFiles, root: int) -> None:
    write(files, root, "new", sync=True)
    assert {"old": b"old"} in trees(files)
    files.sync_directory(root)
    assert trees(files) == [{"old": b"old", "new": b""}]


def test_bytes_are_uncertain_until_their_file_is_synced(files: RecordedFiles, root: int) -> None:
    write(files, root, "new", b"first", b"second")
    files.sync_directory(root)
    contents = [tree["new"] for tree in trees(files)]
    for possible in (b"", b"firstsecond", bytes(11), bytes(5) + b"second"):
        assert possible in contents
    assert any(content and len(content) < 11 and b"firstsecond".startswith(content) for content in contents)


def test_bytes_of_a_synced_file_are_certain(files: RecordedFiles, root: int) -> None:
    write(files, root, "new", b"data", sync=True)
    assert {tree.get("new", b"data") for tree in trees(files)} == {b"data"}


def test_a_rename_is_lost_completely_or_not_at_all(files: RecordedFiles, root: int) -> None:
    files.rename(root, "old", "new")
    assert trees(files) == [{"new": b"old"}, {"old": b"old"}]


def test_a_kept_rename_implies_the_creation_of_its_file(files: RecordedFiles, root: int) -> None:
    write(files, root, "temporary", b"data", sync=True)
    files.rename(root, "temporary", "new")
    found = trees(files)
    assert len(found) == 3
    for names in ({"old", "new"}, {"old", "temporary"}, {"old"}):
        assert names in [tree.keys() for tree in found]


def test_later_changes_may_survive_without_earlier_ones(files: RecordedFiles, root: int) -> None:
    write(files, root, "first", sync=True)
    write(files, root, "second", sync=True)
    assert {"old": b"old", "second": b""} in trees(files)


def test_syncing_a_directory_does_not_sync_its_own_name(files: RecordedFiles, root: int) -> None:
    files.make_directory(root, "directory")
    directory = files.open_directory(root, "directory")
    write(files, directory, "file", sync=True)
    files.sync_directory(directory)
    assert trees(files) == [{"old": b"old", "directory": None, "directory/file": b""}, {"old": b"old"}]
    files.close(directory)


def test_a_directory_is_removed_file_by_file(files: RecordedFiles, root: int) -> None:
    files.make_directory(root, "directory")
    directory = files.open_directory(root, "directory")
    for name in ("a", "b"):
        write(files, directory, name, sync=True)
    for descriptor in (directory, root):
        files.sync_directory(descriptor)
    files.close(directory)
    files.remove_tree(root, "directory", _fail)
    assert {"old": b"old", "directory": None, "directory/b": b""} in trees(files)
    assert len(trees(files)) == 5
    files.sync_directory(root)
    assert trees(files) == [{"old": b"old"}]


def test_missing_directories_are_recorded(files: RecordedFiles, place: Path) -> None:
    os.close(files.open_root(str(place / "a" / "b")))
    assert [tree.keys() for tree in trees(files)] == [{"old", "a", "a/b"}]


def test_states_after_a_power_cut_can_be_sampled(files: RecordedFiles, root: int) -> None:
    for number in range(20):
        write(files, root, str(number), sync=True)
    found = trees(files, limit=100)
    sizes = [len(tree) for tree in found]
    assert {1, 2, 20, 21} <= set(sizes), "nothing, all, one of them, all but one"
    assert len(found) <= 200


def test_a_killed_process_does_nothing_more(files: RecordedFiles, root: int, place: Path) -> None:
    files.kill_after(2)
    write(files, root, "new", b"data")
    files.remove(root, "old")
    with pytest.raises(ProcessKilled):
        files.rename(root, "old", "other")
    assert sorted(os.listdir(place)) == ["new", "old"]
    files.revive()
    files.remove(root, "old")
    assert os.listdir(place) == ["new"]


def test_a_process_can_be_killed_at_its_next_sync(files: RecordedFiles, root: int, place: Path) -> None:
    files.kill_after(0, at_sync=True)
    files.remove(root, "old")
    with pytest.raises(ProcessKilled):
        files.sync_directory(root)
    assert os.listdir(place) == []
    assert {"old": b"old"} in trees(files)


def test_a_tree_is_written_to_disk(tmp_path: Path) -> None:
    lay_out({"a": None, "a/b": b"data"}, tmp_path / "copy")
    assert (tmp_path / "copy" / "a" / "b").read_bytes() == b"data"
