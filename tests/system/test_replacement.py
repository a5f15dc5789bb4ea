"""Files that are replaced as a whole: durable, with the right permissions, and without leftovers."""

import contextlib
import os
import stat
from pathlib import Path

import pytest

from cogment_model_registry.discovery.roster import Roster
from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.services import Details, Endpoint, Protocol, ServiceType
from cogment_model_registry.system.replacement import Replacement

ENDPOINT = Endpoint(Protocol.GRPC, "127.0.0.1", 9000)
DETAILS = Details(ServiceType.MODEL_REGISTRY)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs and renames of the test, in order."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        steps.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def recording_replace(old: str, new: str) -> None:
        steps.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    return steps


def test_a_registration_is_durable_before_the_roster_returns(tmp_path: Path, steps: list[str]) -> None:
    roster = Roster(load_balancing=False, file=str(tmp_path / "services"))
    roster.register(ENDPOINT, DETAILS, "", permanent=True)
    assert steps == ["sync file", "rename", "sync directory"]


def test_a_roster_whose_directory_cannot_be_synced_refuses_the_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing_fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    roster = Roster(load_balancing=False, file=str(tmp_path / "services"))
    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(UnavailableError, match="Input/output error"):
        roster.register(ENDPOINT, DETAILS, "", permanent=True)
    assert len(roster) == 0


@pytest.mark.parametrize(("keeps_mode", "mode"), [(True, 0o644), (False, 0o600)])
def test_a_replaced_file_has_its_permissions_or_those_of_a_new_one(
    tmp_path: Path, *, keeps_mode: bool, mode: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o644)
    with contextlib.closing(Replacement(path, 0o600, keeps_mode=keeps_mode)) as replacement:
        replacement.open().write(b"new")
        assert path.read_bytes() == b"old"
        replacement.commit()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_replacement_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Replacement(tmp_path / "file")) as replacement:
        replacement.open().write(b"new")
    assert os.listdir(tmp_path) == []
