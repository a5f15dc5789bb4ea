"""`cogment archive verify`: every fault of an archive is reported, and safe repairs are made."""

import asyncio
import errno
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.storage.filesystem import claim, layout, verification
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.findings import AFTER_REPAIR, INFORMATION, MEANINGS, REMEDIES, Kind
from cogment_model_registry.storage.filesystem.verification import Report
from cogment_model_registry.testing.server import serving
from tests.archive_tools.annotated import Verify
from tests.archive_tools.test_damaged_archives import (
    DAMAGES,
    DATA,
    FOREIGN_FILES,
    OTHER_THINGS,
    SECRET,
    YAML,
    Plant,
    content,
    sound_archive,
    write_model,
    write_version,
)
from tests.client import body, connected, header
from tests.in_process import run_in_process
from tests.locales import utf_8
from tests.processes import clean_environment, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, until

COGMENT = (sys.executable, "-m", "cogment_model_registry")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with the model `m`, whose versions 1 to 3 are intact."""
    return sound_archive(tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory next to the archive, which must neither be read nor changed."""
    directory = write_model(tmp_path / "outside", "m")
    write_version(directory, 2, SECRET)
    (directory / "mark").write_text("500\n", encoding="utf-8")
    return directory


def tree(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return everything in a directory that a write would change, by name."""
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        small_file = path.is_file() and not path.is_symlink() and status.st_size < 2**20
        text = path.read_bytes() if small_file else b""
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_mtime_ns, status.st_size, text)
    return found


def problems(document: dict[str, Any], field: str = "findings") -> list[tuple[str, int | None, str]]:
    return [(item["kind"], item["version_number"], item["file"]) for item in document[field] if item["problem"]]


def look(archive: Path, files: Files, advance: Callable[[int], None] = lambda _: None) -> Report:
    with claim.opened_root(files, str(archive)) as root:
        return verification.verify(files, root, advance=advance)


def test_versions_that_share_their_bytes_are_sound(archive: Path, verify: Verify) -> None:
    write_version(archive / "m", 4, b"data 1")
    (archive / "m/m-v000004.data").unlink()
    os.link(archive / "m/m-v000001.data", archive / "m/m-v000004.data")
    code, document = verify(archive)
    assert (code, document["versions"], document["findings"]) == (0, 4, [])
    (archive / "m/m-v000001.data").write_bytes(b"DATA 1")  # the data of both
    code, document = verify(archive)
    assert code == 1
    assert len(document["findings"]) == 2


def test_sound_archive_is_reported_as_sound_and_not_changed(archive: Path, verify: Verify) -> None:
    before = tree(archive)
    code, document = verify(archive)
    assert code == 0
    assert document == {
        "path": str(archive),
        "in_use_by": None,
        "models": 1,
        "versions": 3,
        "bytes": 18,
        "findings": [],
        "repaired": [],
        "not_repaired": [],
        "sound": True,
    }
    assert tree(archive) == before  # not even a lock


EXPECTED = {YAML: {Kind.VERSION_METADATA_DAMAGED}, DATA: {Kind.DATA_WRONG_SIZE}}
EXPECTED_THINGS = {YAML: {Kind.VERSION_METADATA_NOT_A_FILE}, DATA: {Kind.DATA_NOT_A_FILE}}
# Metadata that is valid, but does not fit the data.
OF_OTHER_DATA = {"size 5", "size 7"}


@pytest.mark.parametrize(
    ("what", "name", "plant"), [pytest.param(*damage, id=f"{damage[0]} as {damage[1][-4:]}") for damage in DAMAGES]
)
def test_damaged_version_is_found_and_left_unchanged_by_a_repair(
    *, what: str, name: str, plant: Plant, archive: Path, outside: Path, verify: Verify
) -> None:
    (archive / "m" / name).unlink()
    plant(archive / "m" / name, outside)
    expected = (EXPECTED_THINGS if what in OTHER_THINGS else EXPECTED)[name]
    expected = {Kind.DATA_MISSING} if what == "nothing" else expected
    expected = {Kind.DATA_WRONG_SIZE} if what in OF_OTHER_DATA else expected
    before, before_outside = tree(archive), content(outside)
    code, document = verify(archive)
    assert code == 1
    assert tree(archive) == before
    [(kind, number, file)] = problems(document)
    assert ({kind}, number) == (expected, 2)
    assert file == f"m/{DATA if kind.startswith('data') else YAML}"
    assert (document["models"], document["versions"]) == (1, 3)
    code, document = verify(archive, "--repair")
    assert (code, document["repaired"], len(problems(document))) == (1, [], 1)
    after = tree(archive)
    assert {name: after[name] for name in before if name != "."} == {k: v for k, v in before.items() if k != "."}
    assert content(outside) == before_outside


def test_wrong_byte_is_found_by_the_hash(archive: Path, verify: Verify) -> None:
    (archive / "m" / DATA).write_bytes(b"data 7")
    code, document = verify(archive)
    assert (code, problems(document)) == (1, [(Kind.DATA_WRONG_HASH, 2, f"m/{DATA}")])


def test_all_kinds_of_damage_together_are_reported_in_order(archive: Path, verify: Verify) -> None:
    (archive / "m" / DATA).write_bytes(b"data 7")
    (archive / "m/m-v000003.data").unlink()
    (archive / "m/m-v000001.yaml").write_text("", encoding="utf-8")
    write_version(archive / "m", 1_000_000, b"")
    (archive / "m/m-v1000000.data").write_bytes(b"x")
    _, document = verify(archive)
    assert [number for _, number, _ in problems(document)] == [1, 2, 3, 1_000_000]


@pytest.mark.parametrize("text", ["", "cut: [", "model_id: other\nuser_data: {}\n"])
def test_damaged_metadata_of_a_model_is_found_and_kept(text: str, archive: Path, verify: Verify) -> None:
    (archive / "m/m.yaml").write_text(text, encoding="utf-8")
    code, document = verify(archive, "--repair")
    assert (code, problems(document)) == (1, [(Kind.MODEL_METADATA_DAMAGED, None, "m/m.yaml")])
    assert (archive / "m/m.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("what", OTHER_THINGS)
def test_model_metadata_that_is_not_a_regular_file_is_found_and_kept(
    what: str, archive: Path, outside: Path, verify: Verify
) -> None:
    (archive / "m/m.yaml").unlink()
    OTHER_THINGS[what](archive / "m/m.yaml", outside)
    _, document = verify(archive, "--repair")
    assert problems(document) == [(Kind.MODEL_METADATA_NOT_A_FILE, None, "m/m.yaml")]


async def test_missing_metadata_of_a_model_is_rebuilt(archive: Path, verify: Verify) -> None:
    (archive / "m/m.yaml").unlink()
    assert problems(verify(archive)[1]) == [(Kind.MODEL_METADATA_MISSING, None, "m/m.yaml")]
    assert verify(archive, "--repair")[0] == 0
    assert verify(archive)[0] == 0
    assert layout.parse_model((archive / "m/m.yaml").read_bytes(), "m").user_data == {}
    async with serving(archive) as server, connected(server.port) as client:
        assert await client.numbers("m") == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "x", "-7\n", "7.5\n", f"{2**32}\n", "9" * 99])
async def test_damaged_high_water_mark_is_repaired(text: str, archive: Path, verify: Verify) -> None:
    (archive / "m/.high_water_mark").write_text(text, encoding="utf-8")
    assert problems(verify(archive)[1]) == [(Kind.HIGH_WATER_MARK_DAMAGED, None, "m/.high_water_mark")]
    assert verify(archive, "--repair")[0] == 0
    assert verify(archive)[1]["findings"] == []
    assert (archive / "m/.high_water_mark").read_text(encoding="utf-8") == "3\n"
    async with serving(archive) as server, connected(server.port) as client:
        assert (await client.publish("m", b"")).version_number == 4


def test_high_water_mark_that_is_not_a_regular_file_is_repaired_where_possible(
    archive: Path, outside: Path, verify: Verify
) -> None:
    before = content(outside)
    for plant in OTHER_THINGS.values():
        plant(archive / "m/.high_water_mark", outside)
        assert problems(verify(archive)[1]) == [(Kind.HIGH_WATER_MARK_NOT_A_FILE, None, "m/.high_water_mark")]
        code, document = verify(archive, "--repair")
        if (archive / "m/.high_water_mark").is_dir():
            assert (code, len(document["not_repaired"])) == (1, 1)
            (archive / "m/.high_water_mark").rmdir()
        else:
            assert code == 0
            (archive / "m/.high_water_mark").unlink()
    assert content(outside) == before


def test_low_high_water_mark_is_not_a_problem_and_a_repair_raises_it(archive: Path, verify: Verify) -> None:
    (archive / "m/.high_water_mark").write_text("2\n", encoding="utf-8")
    code, document = verify(archive)
    assert (code, [item["kind"] for item in document["findings"]]) == (0, [Kind.HIGH_WATER_MARK_LOW])
    assert verify(archive, "--repair")[0] == 0
    assert (archive / "m/.high_water_mark").read_text(encoding="utf-8") == "3\n"


def plant_leftovers(archive: Path) -> None:
    """Add the leftovers of an interrupted store, deletion and creation."""
    (archive / "m/.~123").write_bytes(b"part")
    (archive / "m/m-v000009.data").write_bytes(b"data 9")
    (archive / ".~77").mkdir()
    (archive / ".~77/x.yaml").write_text("model_id: x\n", encoding="utf-8")
    (archive / ".~77/link").symlink_to(archive / "m")


async def test_leftovers_of_interrupted_work_are_removed_and_their_numbers_not_reused(
    archive: Path, verify: Verify
) -> None:
    plant_leftovers(archive)
    expected = {
        (Kind.TEMPORARY_FILE, None, "m/.~123"),
        (Kind.DATA_WITHOUT_METADATA, 9, "m/m-v000009.data"),
        (Kind.DOOMED_DIRECTORY, None, ".~77"),
    }
    code, document = verify(archive)
    assert (code, set(problems(document))) == (1, expected)
    code, document = verify(archive, "--repair")
    assert (code, set(problems(document, "repaired"))) == (0, expected)
    assert sorted(os.listdir(archive)) == [".lock", "m"]
    assert len(os.listdir(archive / "m")) == 8
    assert verify(archive) == (0, {**document, "findings": [], "repaired": []})
    with server_process(archive) as server:
        async with connected(server.port) as client:
            assert [await client.data("m", number) for number in (1, 2, 3)] == [b"data 1", b"data 2", b"data 3"]
            assert (await client.store("m", b"next")).version_number == 10


async def test_deletion_of_a_model_that_could_not_be_renamed_is_found_and_finished(
    archive: Path, verify: Verify
) -> None:
    write_version(write_model(archive, "kept"), 1, b"kept")
    (archive / "m/.deleted").touch()
    expected = {(Kind.DOOMED_DIRECTORY, None, "m/.deleted")}
    code, document = verify(archive)
    assert (code, document["models"], set(problems(document))) == (1, 1, expected)
    code, document = verify(archive, "--repair")
    assert (code, set(problems(document, "repaired"))) == (0, expected)
    assert sorted(os.listdir(archive)) == [".lock", "kept"]


def test_data_whose_metadata_has_another_name_is_kept(archive: Path, verify: Verify) -> None:
    (archive / "m" / YAML).rename(archive / "m" / f"{YAML}.bak")
    code, document = verify(archive, "--repair")
    assert (code, problems(document, "not_repaired")) == (1, [(Kind.DATA_WITHOUT_METADATA, 2, f"m/{DATA}")])
    assert (archive / "m" / DATA).read_bytes() == b"data 2"


def test_data_is_kept_when_the_high_water_mark_cannot_be_raised(archive: Path, verify: Verify) -> None:
    (archive / "m/m-v000009.data").write_bytes(b"data 9")
    (archive / "m/.high_water_mark").mkdir()
    code, document = verify(archive, "--repair")
    assert (code, document["repaired"], len(document["not_repaired"])) == (1, [], 2)
    assert (archive / "m/m-v000009.data").read_bytes() == b"data 9"


def test_data_in_a_directory_without_any_metadata_is_reported_and_kept(archive: Path, verify: Verify) -> None:
    for path in (archive / "m").glob("*.yaml"):
        path.unlink()
    code, document = verify(archive, "--repair")
    assert (code, problems(document)) == (1, [(Kind.DATA_WITHOUT_MODEL, None, "m")])
    assert len(os.listdir(archive / "m")) == 3


def test_foreign_entries_are_reported_as_notes_and_left_alone(archive: Path, outside: Path, verify: Verify) -> None:
    for name in FOREIGN_FILES:
        path = archive / utf_8(name)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text("foreign", encoding="utf-8")
    os.mkfifo(archive / "fifo")
    os.mkfifo(archive / "m/fifo")
    (archive / "linked").symlink_to(outside)
    (archive / "m/m-v000004.data").symlink_to(outside / DATA)
    (archive / "m/.~9").mkdir()
    (archive / ".~9").write_text("a file", encoding="utf-8")
    os.mkdir(os.fsencode(archive) + b"/bad\xff\x1b")
    before = tree(archive)
    code, document = verify(archive)
    assert code == 0
    assert {item["kind"] for item in document["findings"]} == {Kind.FOREIGN_ENTRY, Kind.NOT_A_MODEL}
    assert (document["models"], document["versions"]) == (1, 3)
    assert verify(archive, "--repair")[0] == 0
    after = tree(archive)
    assert {name: entry for name, entry in after.items() if name not in (".", ".lock")} == {
        name: entry for name, entry in before.items() if name != "."
    }


class Forbidding(Files):
    """File operations on an archive of which some names may not be opened."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def _check(self, name: str) -> None:
        if name in self._names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def open_directory(self, parent: int, name: str) -> int:
        self._check(name)
        return super().open_directory(parent, name)

    def open_to_read(self, directory: int, name: str) -> int:
        self._check(name)
        return super().open_to_read(directory, name)


@pytest.mark.parametrize("name", ["m", "m.yaml", YAML, DATA, ".high_water_mark", ".lock"])
def test_unreadable_files_are_reported(name: str, archive: Path) -> None:
    (archive / "m/.high_water_mark").write_text("3\n", encoding="utf-8")
    (archive / ".lock").touch()
    report = look(archive, Forbidding(name))
    assert [(finding.kind, Path(finding.file).name) for finding in report.findings] == [(Kind.UNREADABLE, name)]


def test_lost_and_found_is_not_a_problem(archive: Path) -> None:
    (archive / "lost+found").mkdir()
    report = look(archive, Forbidding("lost+found"))
    assert [finding.kind for finding in report.findings] == [Kind.NOT_A_MODEL]


@pytest.mark.parametrize("what", OTHER_THINGS)
def test_lock_that_is_not_a_regular_file_is_reported(what: str, archive: Path, outside: Path, verify: Verify) -> None:
    OTHER_THINGS[what](archive / ".lock", outside)
    assert problems(verify(archive)[1]) == [(Kind.LOCK_NOT_A_FILE, None, ".lock")]


class Deleting(Files):
    """File operations during which a model is deleted, as a server does: renamed, then removed file by file."""

    def __init__(self, archive: Path, at_name: str, *, renames: bool) -> None:
        self._archive = archive
        self._at_name = at_name
        self._renames = renames

    def open_to_read(self, directory: int, name: str) -> int:
        if name == self._at_name:
            doomed = delete(self._archive / "m", renames=self._renames)
            for path in doomed.glob("*.data"):
                path.unlink()
        return super().open_to_read(directory, name)


def delete(model: Path, *, renames: bool) -> Path:
    """Begin to delete a model as a server does, and return the path of its files: renamed, or marked."""
    if not renames:
        (model / ".deleted").touch()
        return model
    return model.rename(model.with_name(".~5"))


@pytest.mark.parametrize("renames", [True, False], ids=["renamed", "marked"])
@pytest.mark.parametrize("name", ["m.yaml", YAML, DATA])
def test_model_deleted_during_the_check_is_not_a_finding(name: str, renames: bool, archive: Path) -> None:
    report = look(archive, Deleting(archive, name, renames=renames))
    assert (report.models, report.findings) == (0, [])


def test_files_removed_or_completed_during_the_check_are_not_findings(archive: Path) -> None:
    plant_leftovers(archive)
    yaml = (archive / "m" / YAML).read_bytes()
    (archive / "m" / YAML).unlink()

    def complete(_bytes: int) -> None:
        (archive / "m" / YAML).write_bytes(yaml)
        (archive / "m/.~123").unlink(missing_ok=True)
        (archive / "m/m-v000009.data").unlink(missing_ok=True)
        shutil.rmtree(archive / ".~77", ignore_errors=True)

    assert look(archive, Files(), complete).findings == []


def test_server_may_start_during_a_verification(archive: Path) -> None:
    def start(_bytes: int) -> None:
        files = claim.OwnedFiles(str(archive))
        with claim.opened_root(files, str(archive)) as root, claim.claimed(str(archive), files, root):
            pass

    assert look(archive, Files(), start).findings == []


async def test_uploads_of_a_running_server_are_not_findings_and_nothing_is_repaired(archive: Path) -> None:
    with server_process(archive) as server:
        async with connected(server.port) as client:
            call = client.uploading()
            await call.write(header("m", 2**20, archived=True).SerializeToString())
            await call.write(body(bytes(2**19)).SerializeToString())
            await until(lambda: list((archive / "m").glob(".~*")))
            (archive / "m/m-v000009.data").write_bytes(b"its metadata comes next")
            (archive / "m" / DATA).write_bytes(b"data 7")
            result = await asyncio.to_thread(run_cogment, "archive", "verify", str(archive), "--json")
            document = json.loads(result.stdout)
            assert (result.returncode, result.stderr) == (1, "")
            assert document["in_use_by"] == str(server.pid)
            assert problems(document) == [(Kind.DATA_WRONG_HASH, 2, f"m/{DATA}")]
            text = await asyncio.to_thread(run_cogment, "archive", "verify", str(archive))
            assert f"process {server.pid} uses the archive" in text.stdout
            refused = await asyncio.to_thread(run_cogment, "archive", "verify", str(archive), "--repair")
            assert refused.returncode == 3
            assert refused.stderr.endswith(f"is in use by process {server.pid}\n")
            assert refused.stderr.count("\n") == 1
            assert (archive / "m/m-v000009.data").exists()
            await call.write(body(bytes(2**19)).SerializeToString())
            await call.done_writing()
            assert await call


def test_each_remaining_problem_has_advice(archive: Path) -> None:
    plant_leftovers(archive)
    (archive / "m" / DATA).write_bytes(b"data 7")
    (archive / "m/m-v000001.data").write_bytes(b"data 7")

    def advice(*flags: str) -> dict[str, str]:
        lines = run_in_process("archive", "verify", str(archive), *flags).stdout.splitlines()
        return dict(line.split(": ", 2)[1:] for line in lines if line.startswith("to do: "))

    assert advice() == {
        kind: REMEDIES[kind]
        for kind in (Kind.DOOMED_DIRECTORY, Kind.TEMPORARY_FILE, Kind.DATA_WRONG_HASH, Kind.DATA_WITHOUT_METADATA)
    }
    assert "--repair" in advice()[Kind.TEMPORARY_FILE]
    assert advice("--repair") == {Kind.DATA_WRONG_HASH: REMEDIES[Kind.DATA_WRONG_HASH]}
    assert "backup" in REMEDIES[Kind.DATA_WRONG_HASH]


def test_a_problem_that_a_repair_could_not_fix_has_advice(archive: Path) -> None:
    (archive / "m" / YAML).rename(archive / "m" / f"{YAML}.bak")
    result = run_in_process("archive", "verify", str(archive), "--repair")
    assert f"to do: data_without_metadata: {AFTER_REPAIR}" in result.stdout.splitlines()


def test_every_kind_of_problem_has_a_remedy(archive: Path, verify: Verify) -> None:
    assert set(REMEDIES) == set(Kind) - INFORMATION
    (archive / "m" / DATA).write_bytes(b"data 7")
    (archive / "foreign").touch()
    remedies = {item["kind"]: item["remedy"] for item in verify(archive)[1]["findings"]}
    assert remedies == {Kind.DATA_WRONG_HASH: REMEDIES[Kind.DATA_WRONG_HASH], Kind.FOREIGN_ENTRY: None}


def test_output_has_no_control_characters_whatever_the_file_names(archive: Path) -> None:
    (archive / "\x1b[31mred\n").mkdir()
    (archive / "m/\x1b]0;title\x07").touch()
    result = run_in_process("archive", "verify", str(archive))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.replace("\n", "").isprintable()
    assert "1 model, 3 versions, 18 B read" in result.stdout


def run_on_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal; return its exit code and its two outputs."""
    master, slave = pty.openpty()
    environment = {**clean_environment(), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([*COGMENT, *arguments], stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the last writer has closed it
                break
            if not part:
                break
            shown += part
        os.close(master)
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output.decode(), shown.decode()


def test_bar_is_shown_only_on_standard_error(archive: Path) -> None:
    code, output, shown = run_on_terminal("archive", "verify", str(archive), "--json")
    assert (code, json.loads(output)["sound"]) == (0, True)
    assert "verifying" in shown
    assert "| 18 B/18 B [" in shown


def test_memory_does_not_grow_with_the_size_of_a_version(archive: Path) -> None:
    size_bytes = 300 * 2**20
    with (archive / "m" / DATA).open("wb") as file:
        file.truncate(size_bytes)
    text = (archive / "m" / YAML).read_text(encoding="utf-8").replace("data_size: 6", f"data_size: {size_bytes}")
    (archive / "m" / YAML).write_text(text, encoding="utf-8")
    code = (
        "import sys; from cogment_model_registry.cli import main; main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, "archive", "verify", str(archive)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert Kind.DATA_WRONG_HASH in result.stdout
    assert int(result.stdout.split()[-1]) < 120 * 1024


def test_help_explains_every_kind_of_finding() -> None:
    assert set(MEANINGS) == set(Kind)
    text = run_in_process("archive", "verify", "--help").stdout
    for kind in Kind:
        assert f" {kind}" in text
