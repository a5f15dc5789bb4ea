"""`cogment archive export` and `import` with archives in object stores."""

from pathlib import Path

import obstore
import pytest
from obstore.store import ObjectStore

from cogment_model_registry import ModelRegistry
from cogment_model_registry.storage.bucket import layout
from tests.archive_tools.bucket_places import LARGE, Archives, check, fill, names
from tests.processes import run_cogment, server_process


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The export of a model of a directory."""
    place = tmp_path_factory.mktemp("exported")
    with server_process(place / "archive") as process:
        fill(process)
    ended = run_cogment("archive", "export", str(place / "archive"), "été", f"--output={place}/m.tar")
    assert ended.returncode == 0, ended.stderr
    return (place / "m.tar").read_bytes()


@pytest.fixture
def file(exported: bytes, tmp_path: Path) -> Path:
    """The same, in a file."""
    file = tmp_path / "m.tar"
    file.write_bytes(exported)
    return file


def test_a_model_goes_to_a_bucket_and_back_with_all_it_has(
    archives: Archives, place: tuple[str, ObjectStore], file: Path, tmp_path: Path
) -> None:
    url, store = place
    flag = f"--catalog_dir={archives.catalog}"
    ended = archives.cogment("import", url, str(file), flag)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "imported été: 2 versions, 17.1 MiB, 1 alias, tags and metrics of 1 version\n"
    again = archives.cogment("import", url, str(file), flag)
    assert (again.returncode, again.stderr) == (1, f'error: importing {file}: model "été" exists already\n')
    assert len(names(store, layout.VERSIONS)) == 2
    back = tmp_path / "back.tar"
    ended = archives.cogment("export", url, "été", flag, f"--output={back}")
    assert (ended.returncode, ended.stderr) == (0, "exported 2 versions: 17.1 MiB\n")
    assert back.read_bytes() == file.read_bytes()
    with server_process(archives.catalog, f"--archive_url={url}", environment=archives.environment) as process:
        with ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
            registry.create_model("empty")
        check(process)
        refused = archives.cogment("import", url, str(file), flag, "--model_id=other")
        assert refused.returncode == 3
        assert "is in use by process" in refused.stderr
        ended = archives.cogment("export", url, "été", flag, "--force", f"--output={back}")
        assert ended.returncode == 0, ended.stderr


def test_a_model_gets_another_name_and_leaves_its_annotations(
    archives: Archives, place: tuple[str, ObjectStore], file: Path
) -> None:
    url, _ = place
    flags = (f"--catalog_dir={archives.catalog}", "--model_id=other", "--without_annotations")
    ended = archives.cogment("import", url, str(file), *flags)
    assert ended.stdout == "imported other: 2 versions, 17.1 MiB\n"
    elsewhere = f"--catalog_dir={archives.catalog}_elsewhere"
    ended = archives.cogment("export", url, "other", elsewhere, "--output=/dev/null", "--force")
    assert ended.returncode == 2  # no regular file
    ended = archives.cogment("export", url, "other", elsewhere, f"--output={file}", "--force")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("left out: aliases, tags and metrics: there is no catalog in ")
    missing = archives.cogment("export", url, "été", elsewhere, f"--output={file}", "--force")
    assert missing.returncode == 3


def test_an_import_of_a_file_that_was_cut_leaves_nothing(
    archives: Archives, place: tuple[str, ObjectStore], file: Path, exported: bytes
) -> None:
    url, store = place
    for size_bytes in (9_000_000, len(exported) - 1):
        file.write_bytes(exported[:size_bytes])
        ended = archives.cogment("import", url, str(file), f"--catalog_dir={archives.catalog}")
        assert ended.returncode == 1
        assert "is not a complete export of a model" in ended.stderr
    assert names(store, layout.MODELS, layout.VERSIONS, layout.HINTS, layout.MARKS, layout.DATA) == []


def test_damage_in_a_bucket_ends_an_export_or_is_left_out(
    archives: Archives, place: tuple[str, ObjectStore], file: Path, tmp_path: Path
) -> None:
    url, store = place
    flag = f"--catalog_dir={archives.catalog}"
    assert archives.cogment("import", url, str(file), flag).returncode == 0
    [first] = [each["path"] for chunk in obstore.list(store, "data") for each in chunk if each["size"] == len(b"first")]
    obstore.put(store, first, b"First")
    output = tmp_path / "damaged.tar"
    ended = archives.cogment("export", url, "été", flag, f"--output={output}")
    assert ended.returncode == 1
    assert ended.stderr == 'error: version 1 of model "été" is damaged: its bytes do not match their hash\n'
    assert not output.exists()
    ended = archives.cogment("export", url, "été", flag, f"--output={output}", "--skip_damaged")
    assert ended.returncode == 0, ended.stderr
    assert 'left out: version 1 of model "été" is damaged' in ended.stderr
    assert 'left out: alias "production", whose version 1 is not in the export' in ended.stderr
    target = tmp_path / "directory"
    target.mkdir()
    ended = archives.cogment("import", str(target), str(output))
    assert (ended.returncode, ended.stdout) == (0, "imported été: 1 version, 17.1 MiB\n")
    with server_process(target) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        assert registry.retrieve("été", 3) == LARGE


def test_a_directory_takes_no_directory_of_a_catalog(archives: Archives, file: Path) -> None:
    archives.directory.mkdir()
    for arguments in (("export", str(archives.directory), "été"), ("import", str(archives.directory), str(file))):
        ended = archives.cogment(*arguments, f"--catalog_dir={archives.catalog}")
        assert ended.returncode == 2
        assert "--catalog_dir is for an address: a directory has its catalog" in ended.stderr
