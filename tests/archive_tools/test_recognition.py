"""Directories that are not archives, have no model, or have a newer format: each command fails and changes nothing."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archive_tools.test_damaged_archives import sound_archive
from tests.in_process import run_in_process
from tests.processes import run_cogment, server_process


def _nothing(_path: Path) -> None:
    pass


def _file(path: Path) -> None:
    path.write_text("not a directory")


def _dangling_link(path: Path) -> None:
    path.symlink_to("missing")


def _empty(path: Path) -> None:
    path.mkdir()


def _fresh_file_system(path: Path) -> None:
    (path / "lost+found").mkdir(parents=True)


def _other_things(path: Path) -> None:
    (path / "conf.d").mkdir(parents=True)
    (path / "conf.d/conf.yaml").write_text("")
    (path / "hosts").write_text("localhost")
    (path / "link").symlink_to("/")
    (path / ".hidden").mkdir()


def _model(path: Path) -> None:
    """Create what an operator names who goes one directory too deep."""
    sound_archive(path.parent / "below").joinpath("m").rename(path)


def _archive_below(path: Path) -> None:
    """Create what an operator names who does not go deep enough."""
    path.mkdir()
    sound_archive(path)


EMPTY = [_empty, _fresh_file_system]
NO_ARCHIVES = [_nothing, _file, _dangling_link, _other_things, _model, _archive_below]
Make = Callable[[Path], None]


@pytest.fixture
def exported(tmp_path: Path) -> str:
    """The path of an exported model."""
    file = str(tmp_path / "m.tar")
    words = ("archive", "export", str(sound_archive(tmp_path / "source")), "m", "--output", file)
    assert run_in_process(*words).returncode == 0
    return file


def names_below(path: Path) -> list[str]:
    return sorted(str(each) for each in [path, *path.rglob("*")]) if path.is_dir() else []


READERS = [["verify"], ["verify", "--repair"], ["verify", "--json"], ["export"]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        *((make, words) for make in [*NO_ARCHIVES, *EMPTY] for words in READERS),
        *((make, ["import"]) for make in NO_ARCHIVES),  # an empty directory becomes an archive
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value),
)
def test_a_directory_that_is_not_an_archive_is_refused_and_unchanged(
    make: Make, words: list[str], tmp_path: Path, exported: str
) -> None:
    path = tmp_path / "given"
    make(path)
    before = names_below(path)
    more = {"export": ["m", "--output", str(tmp_path / "x.tar")], "import": [exported]}.get(words[0], [])
    result = run_in_process("archive", *words, str(path), *more)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: ")
    assert str(path) in result.stderr
    assert names_below(path) == before
    assert not (tmp_path / "x.tar").exists()


def test_the_error_for_the_parent_of_an_archive_suggests_the_archive(tmp_path: Path) -> None:
    with server_process(tmp_path / "above/archive") as server:
        assert server.stop() == 0
    result = run_in_process("archive", "verify", str(tmp_path / "above"))
    assert (result.returncode, result.stdout) == (2, "")
    assert f"did you mean {tmp_path / 'above/archive'}?" in result.stderr


@pytest.mark.parametrize("make", EMPTY, ids=lambda make: make.__name__)
def test_an_empty_directory_becomes_an_archive_by_an_import(make: Make, tmp_path: Path, exported: str) -> None:
    make(tmp_path / "new")
    assert run_in_process("archive", "import", str(tmp_path / "new"), exported).returncode == 0
    result = run_in_process("archive", "verify", str(tmp_path / "new"))
    assert result.returncode == 0
    assert "1 model, 3 versions" in result.stdout


def test_an_archive_without_a_model_is_not_reported_as_sound(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        assert server.stop() == 0
    result = run_in_process("archive", "verify", str(tmp_path / "archive"))
    assert result.returncode == 3
    assert result.stdout.startswith("0 models, 0 versions")
    assert result.stderr == f"error: archive {tmp_path / 'archive'} has no model, so nothing was checked\n"
    result = run_in_process("archive", "verify", str(tmp_path / "archive"), "--json")
    assert (result.returncode, json.loads(result.stdout)["sound"]) == (3, False)
    assert run_in_process("archive", "export", str(tmp_path / "archive"), "m").returncode == 3


def test_a_problem_takes_precedence_over_the_lack_of_models(tmp_path: Path) -> None:
    (tmp_path / "archive/.~5").mkdir(parents=True)
    assert run_in_process("archive", "verify", str(tmp_path / "archive")).returncode == 1
    assert run_in_process("archive", "verify", str(tmp_path / "archive"), "--repair").returncode == 3


def test_an_unreadable_directory_is_named_in_the_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    archive = sound_archive(tmp_path)
    archive.chmod(0)
    with contextlib.ExitStack() as stack:
        stack.callback(archive.chmod, 0o700)
        for words in (["verify", str(archive)], ["export", str(archive), "m"]):
            result = run_in_process("archive", *words)
            assert result.returncode != 0
            assert str(archive) in result.stderr


# The format.


def _newer(path: Path) -> None:
    path.write_text("2\n")


def _malformed(path: Path) -> None:
    path.write_text("two\n")


def _cut(path: Path) -> None:
    path.write_text("")


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_newer, _malformed, _cut, _directory], ids=lambda make: make.__name__)
def test_an_archive_of_an_unknown_format_is_refused_in_one_line(make: Make, tmp_path: Path, exported: str) -> None:
    archive = sound_archive(tmp_path)
    (archive / ".~7").mkdir()  # a server would remove this
    make(archive / ".format")
    before = names_below(archive)
    expected = "format 2" if make is _newer else "not the number of a format"
    for words in (
        ["verify", str(archive)],
        ["verify", str(archive), "--repair"],
        ["export", str(archive), "m"],
        ["import", str(archive), exported, "--model_id", "n"],
    ):
        result = run_in_process("archive", *words)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
        assert str(archive) in result.stderr
        assert expected in result.stderr
    assert names_below(archive) == before
    for flags in (["--read_only"], []):
        place = ("--port=0", "--host=127.0.0.1", f"--archive_dir={archive}")
        server = run_cogment("services", "model_registry", *place, *flags)
        assert (server.returncode, server.stdout, server.stderr.count("\n")) == (3, "", 1)
        assert expected in server.stderr
        assert names_below(archive) == sorted(before if flags else [*before, str(archive / ".lock")])


def test_an_archive_may_name_the_current_format(tmp_path: Path) -> None:
    archive = sound_archive(tmp_path)
    (archive / ".format").write_text("1\n")
    result = run_in_process("archive", "verify", str(archive), "--json")
    assert (result.returncode, json.loads(result.stdout)["findings"]) == (0, [])
    with server_process(archive) as server:
        assert server.stop() == 0
    assert (archive / ".format").read_text() == "1\n"
