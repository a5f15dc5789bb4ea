"""Which read errors are damage: the server, `verify` and `export` agree on each errno."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cogment_model_registry.errors import DataLossError, ModelRegistryError, UnavailableError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.filesystem import claim, export_writer, model_export, verification
from cogment_model_registry.storage.filesystem.archive import DirectoryArchive
from cogment_model_registry.storage.filesystem.files import Cause, Files, NotRegularError, cause_of
from cogment_model_registry.storage.filesystem.findings import Kind
from tests.archive_tools.test_damaged_archives import sound_archive

CAUSES = {
    "EACCES": Cause.FILE,
    "EISDIR": Cause.FILE,
    "ELOOP": Cause.FILE,
    "ENODEV": Cause.FILE,
    "ENOTDIR": Cause.FILE,
    "ENXIO": Cause.FILE,
    "EPERM": Cause.FILE,
    "EMFILE": Cause.PROCESS,
    "ENFILE": Cause.PROCESS,
    "ENOMEM": Cause.PROCESS,
}
STORAGE_ERRORS = ["EIO", "ESTALE", "EBADMSG", "EREMOTEIO", "ETIMEDOUT", "EINVAL", "EAGAIN"]
YAML = "m-v000002.yaml"
DATA = "m-v000002.data"


def error_of(name: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


class Failing(Files):
    """File operations in which opening one file fails."""

    def __init__(self, name: str, error: str) -> None:
        self._name = name
        self._error = error

    def open_to_read(self, directory: int, name: str) -> int:
        if name == self._name:
            raise error_of(self._error)
        return super().open_to_read(directory, name)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with the model `m`, whose versions 1 to 3 are intact."""
    return sound_archive(tmp_path)


every_errno = pytest.mark.parametrize("error", [name for name in errno.errorcode.values() if name != "ENOENT"])
every_file = pytest.mark.parametrize("name", [YAML, DATA])


@every_errno
def test_the_cause_of_an_error_is_known(error: str) -> None:
    assert cause_of(error_of(error)) is CAUSES.get(error, Cause.STORAGE)


def test_something_that_is_not_a_regular_file_is_damage() -> None:
    assert cause_of(NotRegularError("a FIFO")) is Cause.FILE


async def read_by_server(archive: Path, files: Files) -> ModelRegistryError | None:
    """Return why the server cannot read version 2 of the model; None if it can."""
    server_archive = DirectoryArchive(str(archive), 128, files)
    await server_archive.open()
    try:
        [info] = await server_archive.read_version_infos("m", [2])
        if isinstance(info, VersionInfo):
            await (await server_archive.open_version(info)).aclose()
            return None
        assert isinstance(info, DataLossError)
        return info
    except ModelRegistryError as error:
        return error
    finally:
        await server_archive.close()


@every_file
@pytest.mark.parametrize("error", [*CAUSES, *STORAGE_ERRORS])
async def test_the_server_reports_damage_for_a_bad_file_and_is_unavailable_otherwise(
    archive: Path, name: str, error: str
) -> None:
    found = await read_by_server(archive, Failing(name, error))
    expected = DataLossError if CAUSES.get(error) is Cause.FILE else UnavailableError
    assert type(found) is expected
    assert os.strerror(getattr(errno, error)) in found.message


def verified(archive: Path, files: Files) -> verification.Report:
    with claim.opened_root(files, str(archive)) as root:
        return verification.verify(files, root, advance=lambda _: None)


@every_file
@pytest.mark.parametrize("error", [*(e for e, cause in CAUSES.items() if cause is Cause.FILE), *STORAGE_ERRORS])
def test_verify_reports_unreadable_versions_and_continues(archive: Path, name: str, error: str) -> None:
    report = verified(archive, Failing(name, error))
    message = f"it cannot be read: {os.strerror(getattr(errno, error))}"
    assert [(found.kind, found.file, found.message) for found in report.findings] == [
        (Kind.UNREADABLE, f"m/{name}", message)
    ]
    assert report.versions == 3


def exported(archive: Path, files: Files, warn: Callable[[str], object]) -> export_writer.Exported:
    with claim.opened_root(files, str(archive)) as root:
        return model_export.export_model(
            files, root, "m", lambda _: None, skip_damaged=True, warn=warn, advance=lambda _: None
        )


@every_file
@pytest.mark.parametrize("error", [e for e, cause in CAUSES.items() if cause is Cause.FILE])
def test_export_leaves_out_a_damaged_version_on_request(archive: Path, name: str, error: str) -> None:
    warnings: list[str] = []
    assert exported(archive, Failing(name, error), warnings.append).versions == 2
    assert len(warnings) == 1
    assert "version 2" in warnings[0]


@every_file
@pytest.mark.parametrize("error", STORAGE_ERRORS)
def test_export_never_leaves_out_a_version_whose_disk_fails(archive: Path, name: str, error: str) -> None:
    warnings: list[str] = []
    with pytest.raises(UnavailableError, match=os.strerror(getattr(errno, error))):
        exported(archive, Failing(name, error), warnings.append)
    assert warnings == []


@every_file
@pytest.mark.parametrize("error", [e for e, cause in CAUSES.items() if cause is Cause.PROCESS])
def test_a_process_short_of_a_resource_ends_each_command(archive: Path, name: str, error: str) -> None:
    for command in (
        lambda: verified(archive, Failing(name, error)),
        lambda: exported(archive, Failing(name, error), print),
    ):
        with pytest.raises(OSError, match=os.strerror(getattr(errno, error))):
            command()
