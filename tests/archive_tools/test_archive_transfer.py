"""`cogment archive export` and `import`: a model moves completely or not at all, whatever happens to the file."""

import asyncio
import contextlib
import errno
import io
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cogment_model_registry.cli import main
from cogment_model_registry.errors import InvalidError, ModelRegistryError, NotFoundError, UnavailableError
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.storage.filesystem import (
    claim,
    export_format,
    import_reader,
    layout,
    model_export,
    model_files,
    model_import,
)
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.testing.server import serving
from tests.archive_tools.test_archive_verify import COGMENT, run_on_terminal, tree
from tests.archive_tools.test_damaged_archives import ORIGINAL, write_model, write_version
from tests.client import connected
from tests.in_process import run_in_process
from tests.locales import utf_8
from tests.processes import START_SECONDS, clean_environment, run, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, wait_until

SEED = 20261123
BIG = random.Random(SEED).randbytes(3_000_000)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with the models `m`, which has a gap, and `other`."""
    directory = write_model(tmp_path / "archive", "m")
    write_version(directory, 1, b"data 1")
    write_version(directory, 2, b"", user_data='{step: "1e3", note: "é\\n\\0"}')
    write_version(directory, 5, bytes(range(256)) * 9, extra="kept")
    (directory / ".high_water_mark").write_text("7\n", encoding="utf-8")
    write_version(write_model(tmp_path / "archive", "other"), 1, b"other")
    return tmp_path / "archive"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty archive."""
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def do_nothing(_value: object = None) -> None:
    pass


def export(archive: Path, model_id: str = "m", files: Files | None = None, *, skip_damaged: bool = False) -> bytes:
    output = io.BytesIO()
    files = files or Files()
    with claim.opened_root(files, str(archive)) as root:
        model_export.export_model(
            files, root, model_id, output.write, skip_damaged=skip_damaged, warn=do_nothing, advance=do_nothing
        )
    return output.getvalue()


class Unsynced(Files):
    """File operations without syncs, for tests that import many times and do not check durability."""

    def sync_file(self, file: int) -> None:
        pass

    def sync_directory(self, directory: int) -> None:
        pass


def import_(
    target: Path,
    data: bytes,
    model_id: str = "",
    *,
    files: Files | None = None,
    check_holder: Callable[[], object] = do_nothing,
) -> import_reader.Imported:
    files = files or Unsynced()
    with claim.opened_root(files, str(target)) as root:
        return model_import.import_model(
            files, root, io.BytesIO(data), model_id=model_id, check_holder=check_holder, advance=do_nothing
        )


@contextlib.contextmanager
def refused(target: Path, expected: type[BaseException] = InvalidError, message: str | None = None) -> Iterator[None]:
    """Expect that an import fails and leaves nothing."""
    before = sorted(os.listdir(target))
    with pytest.raises(expected, match=message):
        yield
    assert sorted(os.listdir(target)) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_imported_model_has_the_same_files_as_the_exported_one(archive: Path, target: Path) -> None:
    before = tree(archive)
    data = export(archive)
    assert tree(archive) == before
    assert export(archive) == data
    imported = import_(target, data, files=Files())
    assert (imported.model_id, imported.versions, imported.data_bytes) == ("m", 3, 2310)
    assert contents(target / "m") == contents(archive / "m")
    assert os.listdir(target) == ["m"]


def test_every_model_of_the_original_can_be_moved(tmp_path: Path, target: Path) -> None:
    for name, text in re.findall(r"^== (.+)\n((?:(?!== ).*\n)+)", ORIGINAL, re.MULTILINE):
        path = tmp_path / "original" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.removesuffix("\n") if name.endswith(".data") else text, encoding="utf-8")
    for model in (tmp_path / "original").iterdir():
        import_(target, export(tmp_path / "original", model.name))
        expected = contents(model)
        last = max([0, *(int(name[-11:-5]) for name in expected if name.endswith(".data"))])
        assert contents(target / model.name) == {**expected, ".high_water_mark": b"%d\n" % last}


def test_numbers_of_damaged_versions_and_of_data_without_metadata_are_not_reused(archive: Path, target: Path) -> None:
    (archive / "m/m-v000009.data").write_bytes(b"no metadata")
    import_(target, export(archive))
    assert (target / "m/.high_water_mark").read_text(encoding="utf-8") == "9\n"


@pytest.mark.parametrize("new_id", ["n", "été", "m-v000001", "a.yaml", "1" * 128, "m " * 60 + "x"])
def test_model_can_be_imported_under_another_name(new_id: str, archive: Path, target: Path) -> None:
    import_(target, export(archive), new_id)
    files = Files()
    model = target / utf_8(new_id)
    with claim.opened_root(files, str(model)) as directory:
        for number in (1, 2, 5):
            name = layout.version_file_name("m", number)
            old = layout.parse_version((archive / "m" / name).read_bytes(), "m", number)
            new = layout.parse_version(
                (model / utf_8(layout.version_file_name(new_id, number))).read_bytes(), new_id, number
            )
            assert (new.number, new.created_ns, new.data_hash, new.data_size_bytes, new.user_data) == (
                old.number,
                old.created_ns,
                old.data_hash,
                old.data_size_bytes,
                old.user_data,
            )
        assert files.status(directory).st_nlink
    assert (model / ".high_water_mark").read_text(encoding="utf-8") == "7\n"
    # Long names need another form of header.
    import_(target, export(target, new_id), "back")
    assert len(os.listdir(target / "back")) == 8


def test_plain_tar_also_extracts_a_working_model(archive: Path, target: Path) -> None:
    (target / "export.tar").write_bytes(export(archive))
    subprocess.run(["tar", "--extract", "--file", "export.tar"], cwd=target, check=True, timeout=PATIENCE_SECONDS)
    (target / "export.tar").unlink()
    assert main(["archive", "verify", str(target)]) == 0

    async def ask() -> None:
        async with serving(target) as server, connected(server.port) as client:
            assert await client.numbers("m") == [1, 2, 5]
            assert await client.data("m", 5) == bytes(range(256)) * 9
            assert (await client.publish("m", b"")).version_number == 8

    asyncio.run(ask())


# Damage to the file.


def boundaries(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [position for member in tar for position in (member.offset, member.offset_data)]


def test_truncated_export_is_refused_and_leaves_nothing(archive: Path, target: Path) -> None:
    data = export(archive)
    chance = random.Random(SEED)
    cuts = {*boundaries(data), *(chance.randrange(len(data)) for _ in range(100)), len(data) - 1, len(data) - 512}
    for cut in sorted(cuts):
        with refused(target, message="ends after"):
            import_(target, data[:cut])


def test_any_flipped_bit_is_detected(archive: Path, target: Path) -> None:
    data = export(archive)
    chance = random.Random(SEED)
    for _ in range(600):
        position, bit = chance.randrange(len(data)), chance.randrange(8)
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        with refused(target):
            import_(target, bytes(changed))


def test_data_after_the_end_is_refused(archive: Path, target: Path) -> None:
    data = export(archive)
    for more in (b"\0", b"x", bytes(10240), data):
        with refused(target, message="after its end"):
            import_(target, data + more)


def members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def packed(entries: list[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tar_format, errors="surrogateescape") as tar:
        for info, text in entries:
            tar.addfile(info, io.BytesIO(text) if info.isreg() else None)
    return output.getvalue()


Entries = list[tuple[tarfile.TarInfo, bytes]]


def changed(position: int, **attributes: object) -> Callable[[Entries], Entries]:
    """Return a function that changes the header of an entry."""

    def change(entries: Entries) -> Entries:
        for name, value in attributes.items():
            setattr(entries[position][0], name, value)
        return entries

    return change


def with_content(position: int, text: bytes) -> Callable[[Entries], Entries]:
    """Return a function that changes the content of an entry."""

    def change(entries: Entries) -> Entries:
        info, _ = entries[position]
        info.size = len(text)
        entries[position] = (info, text)
        return entries

    return change


def with_all_ids(model_id: str) -> Callable[[Entries], Entries]:
    """Return a function that moves all entries to another directory."""

    def change(entries: Entries) -> Entries:
        for info, _ in entries:
            info.name = info.name.replace("m/m", f"{model_id}/{model_id}").replace("m/.", f"{model_id}/.")
        return entries

    return change


def extra(name: str, text: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o640
    for field, value in fields.items():
        setattr(info, field, value)
    return info, text


HOSTILE: dict[str, Callable[[Entries], Entries]] = {
    "an empty tar": lambda _: [],
    "no manifest": lambda entries: entries[:-1],
    "no versions and their manifest": lambda entries: [*entries[:2], entries[-1]],
    "a version less": lambda entries: entries[:2] + entries[4:],
    "no metadata of a version": lambda entries: entries[:3] + entries[4:],
    "no data of a version": lambda entries: entries[:2] + entries[3:],
    "no high-water mark": lambda entries: entries[1:],
    "no model": lambda entries: entries[:1] + entries[2:],
    "metadata first": lambda entries: [*entries[:2], entries[3], entries[2], *entries[4:]],
    "numbers out of order": lambda entries: [*entries[:2], *entries[4:6], *entries[2:4], *entries[6:]],
    "a version twice": lambda entries: entries[:4] + entries[2:],
    "the model twice": lambda entries: entries[:2] + entries[1:],
    "the mark twice": lambda entries: entries[:1] + entries,
    "the manifest twice": lambda entries: [*entries, entries[-1]],
    "a foreign file": lambda entries: [*entries[:2], extra("m/foreign"), *entries[2:]],
    "a foreign file at the end": lambda entries: [*entries, extra("m/foreign")],
    "a file of another model": lambda entries: [*entries[:2], extra("n/n-v000001.data"), *entries[2:]],
    "a file above": lambda entries: [*entries[:2], extra("m/../m-v000001.data"), *entries[2:]],
    "an absolute name": lambda entries: [*entries[:2], extra("/m/m-v000001.data"), *entries[2:]],
    "a name with a dot": changed(2, name="./m/m-v000001.data"),
    "a directory": lambda entries: [extra("m", b"", type=tarfile.DIRTYPE), *entries],
    "a symbolic link": changed(2, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": changed(2, type=tarfile.LNKTYPE, linkname="m/m.yaml"),
    "a device": changed(2, type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a FIFO": changed(2, type=tarfile.FIFOTYPE),
    "a contiguous file": changed(2, type=tarfile.CONTTYPE),
    "an old plain file": changed(2, type=tarfile.AREGTYPE),
    "a sparse file": changed(2, type=tarfile.GNUTYPE_SPARSE),
    "a setuid file": changed(2, mode=0o4755),
    "a file of someone": changed(2, uid=1000, uname="someone"),
    "another time": changed(2, mtime=1),
    "a model above": with_all_ids(".."),
    "the directory itself": with_all_ids("."),
    "a hidden model": with_all_ids(".m"),
    "a temporary name": with_all_ids(".~5"),
    "an id that is not UTF-8": lambda entries: [extra("m\udcff/.high_water_mark", b"7\n"), *entries[1:]],
    "a long id that is not UTF-8": lambda entries: [extra("m" * 200 + "\udcff/.high_water_mark", b"7\n"), *entries[1:]],
    "an id that is no id": with_all_ids("a\nb"),
    "a long id": with_all_ids("x" * 250),
    "other metadata of the model": with_content(1, b"model_id: m\nuser_data: {a: b}\n"),
    "metadata of another model": with_content(1, b"model_id: n\nuser_data: {}\n"),
    "another mark": with_content(0, b"8\n"),
    "a mark below a version": with_content(0, b"4\n"),
    "a mark in other words": with_content(0, b"07\n"),
    "no mark": with_content(0, b"x"),
    "huge metadata": with_content(1, b"#" * (layout.METADATA_MAX_BYTES + 1)),
    "a huge manifest": with_content(-1, b" " * (layout.METADATA_MAX_BYTES + 10**6)),
    "an empty manifest": with_content(-1, b""),
    "a manifest that is a list": with_content(-1, b"[]"),
    "a manifest that nests": with_content(-1, b'{"left_out":' + b"[" * 100_000),
    "a manifest with other words": with_content(-1, b'{"left_out": ["x"]}'),
    "other data": with_content(2, b"data 7"),
    "more data": with_content(2, b"data 1 "),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_not_an_export_is_refused_and_leaves_nothing(what: str, archive: Path, target: Path) -> None:
    data = packed(HOSTILE[what](members(export(archive))))
    before = tree(target.parent)
    with refused(target):
        import_(target, data)
    assert tree(target.parent).keys() == before.keys()


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_other_formats_of_tar_are_refused(tar_format: int, archive: Path, target: Path) -> None:
    entries = members(export(archive))
    assert packed(entries) == export(archive)  # this test creates unchanged exports
    for info, _ in entries:
        info.pax_headers = {"GNU.sparse.size": "5", "path": "x"}
    with refused(target):
        import_(target, packed(entries, tar_format))


@pytest.mark.parametrize("size_bytes", [8 * 2**30, 2**40, 2**62])
def test_files_of_more_than_8_gib_have_headers(size_bytes: int) -> None:
    raw = export_format.header("m/m-v000001.data", size_bytes, 10**9)
    assert tarfile.TarInfo.frombuf(raw, "utf-8", "strict").size == size_bytes


@pytest.mark.parametrize("raw", [b"", b"x" * 512, bytes(10240), BIG[:20480], b"\x1f\x8b" + bytes(600)])
def test_file_that_is_not_a_tar_file_is_refused(raw: bytes, target: Path) -> None:
    with refused(target):
        import_(target, raw)


def test_header_with_too_large_a_size_allocates_no_memory(target: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.REGTYPE):
        info = tarfile.TarInfo("m/.high_water_mark")
        info.size, info.type, info.mode = 2**50, kind, 0o640
        with refused(target):
            import_(target, info.tobuf(tarfile.GNU_FORMAT) + bytes(10**6))


# Damage in the archive.


def test_damaged_version_ends_an_export_or_is_left_out_with_skip_damaged(archive: Path, target: Path) -> None:
    (archive / "m/m-v000001.data").write_bytes(b"data 7")
    (archive / "m/m-v000002.yaml").write_text("", encoding="utf-8")
    file = target.parent / "m.tar"
    result = run_in_process("archive", "export", str(archive), "m", "--output", str(file))
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r'error: version 1 of model "m" is damaged: .* do not match their hash\n', result.stderr)
    assert not list(target.parent.glob("*m.tar*"))
    result = run_in_process("archive", "export", str(archive), "m", "--output", str(file), "--skip_damaged")
    assert result.returncode == 0
    assert [line.split(" of ")[0] for line in result.stderr.splitlines()[:2]] == [
        "left out: version 1",
        "left out: version 2",
    ]
    result = run_cogment("archive", "import", str(target), str(file))
    assert (result.returncode, result.stdout) == (0, "imported m: 1 version, 2.2 KiB\n")
    assert result.stderr == "the export had left out 2 damaged versions: 1, 2\n"
    assert (target / "m/.high_water_mark").read_text(encoding="utf-8") == "7\n"
    assert main(["archive", "verify", str(target)]) == 0


@pytest.mark.parametrize("numbers", [[1], [1, 2, 5]])
def test_an_export_that_would_leave_out_every_version_fails(
    numbers: list[int], archive: Path, target: Path, tmp_path: Path
) -> None:
    for number in {1, 2, 5} - {*numbers}:
        for path in (archive / "m").glob(f"m-v{number:06d}.*"):
            path.unlink()
    for number in numbers:
        (archive / "m" / layout.version_file_name("m", number)).write_text("")
    file = tmp_path / "m.tar"
    words = ("archive", "export", str(archive), "m", "--skip_damaged")
    result = run_in_process(*words, "--output", str(file))
    count = "1 damaged version" if len(numbers) == 1 else f"{len(numbers)} damaged versions"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f'error: no version of model "m" is left to export: {count} left out'
    assert not list(tmp_path.glob("*m.tar*"))
    cut = subprocess.run(
        [*COGMENT, *words], capture_output=True, timeout=PATIENCE_SECONDS, check=False, env=clean_environment()
    )
    assert cut.returncode == 1
    with refused(target):
        import_(target, cut.stdout)


def test_a_model_without_versions_is_exported(archive: Path, target: Path) -> None:
    for path in (archive / "m").glob("m-v*"):
        path.unlink()
    assert import_(target, export(archive, skip_damaged=True)).versions == 0


def test_an_export_of_a_later_format_says_so(archive: Path, target: Path) -> None:
    data = export(archive)
    later = data.replace(b"cogment model export 1", b"cogment model export 3")
    with refused(target, message='another format, "cogment model export 3"'):
        import_(target, later)


@pytest.mark.parametrize("name", ["m.yaml", ".high_water_mark"])
def test_damaged_metadata_of_a_model_ends_an_export_or_is_replaced_with_skip_damaged(
    name: str, archive: Path, target: Path
) -> None:
    (archive / "m" / name).write_text("", encoding="utf-8")
    with pytest.raises(ModelRegistryError, match="is damaged"):
        export(archive)
    assert import_(target, export(archive, skip_damaged=True)).versions == 3
    assert (target / "m/.high_water_mark").read_text(encoding="utf-8") == (
        "5\n" if name == ".high_water_mark" else "7\n"
    )


def test_bytes_that_change_during_an_export_end_it_even_with_skip_damaged(archive: Path) -> None:
    write_version(archive / "m", 6, BIG)

    def spoil(size_bytes: int) -> None:
        if size_bytes < model_files.BLOCK_BYTES:
            return
        with (archive / "m/m-v000006.data").open("r+b") as file:
            file.seek(2_999_000)
            file.write(b"x")

    with claim.opened_root(Files(), str(archive)) as root, pytest.raises(ModelRegistryError, match="version 6"):
        model_export.export_model(Files(), root, "m", lambda _: None, skip_damaged=True, warn=do_nothing, advance=spoil)


@pytest.mark.parametrize("renames", [True, False], ids=["renamed", "marked"])
@pytest.mark.parametrize("skip_damaged", [False, True])
def test_deleting_the_model_during_an_export_ends_it(skip_damaged: bool, renames: bool, archive: Path) -> None:
    def delete(_bytes: int) -> None:
        if (archive / "m").exists() and not (archive / "m/.deleted").exists():
            if renames:
                doomed = (archive / "m").rename(archive / ".~5")
            else:
                doomed = archive / "m"
                (doomed / ".deleted").touch()
            for path in doomed.glob("*.data"):
                path.unlink()

    with claim.opened_root(Files(), str(archive)) as root, pytest.raises(NotFoundError, match="was deleted"):
        model_export.export_model(
            Files(), root, "m", lambda _: None, skip_damaged=skip_damaged, warn=do_nothing, advance=delete
        )


# Output files and imported models.


def test_export_replaces_a_file_only_with_force(archive: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.tar"
    arguments = ("archive", "export", str(archive), "m", "--output", str(file))
    assert run_in_process(*arguments).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o640 & ~current_umask()
    first = file.read_bytes()
    file.write_text("mine", encoding="utf-8")
    result = run_in_process(*arguments)
    assert (result.returncode, file.read_text(encoding="utf-8")) == (2, "mine")
    assert run_in_process(*arguments, "--force").returncode == 0
    assert file.read_bytes() == first
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("m.tar")
    for name in ("fifo", "archive"):
        result = run_in_process(*arguments[:-1], str(tmp_path / name), "--force")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    file.write_text("mine", encoding="utf-8")
    link = str(tmp_path / "link")
    assert run_in_process(*arguments[:-1], link).returncode == 2
    assert run_in_process(*arguments[:-1], link, "--force").returncode == 0
    assert os.path.islink(link)
    assert file.read_bytes() == first
    assert sorted(os.listdir(tmp_path)) == ["archive", "fifo", "link", "m.tar"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_unknown_model_is_not_found_and_a_bad_id_is_wrong_usage(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "file").touch()
    (archive / "directory").mkdir()
    (archive / "link").symlink_to("m")
    arguments = ["archive", "export", f"--output={tmp_path / 'x.tar'}", str(archive), "--"]
    for name in ("missing", "file", "directory", "link"):
        assert main([*arguments, name]) == 3
        assert capsys.readouterr() == ("", f'error: model "{name}" does not exist\n')
    for name in ("../m", "", ".~5", "a/b"):
        assert main([*arguments, name]) == 2, name
        output, errors = capsys.readouterr()
        assert (output, errors.count("\n")) == ("", 1)
    assert not list(tmp_path.glob("*x.tar*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes for others")
def test_files_that_root_writes_belong_to_the_owner_of_the_archive(archive: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "m.tar").write_bytes(export(archive))
    os.chown(target, 12345, 23456)
    assert main(["archive", "import", str(target), str(tmp_path / "m.tar")]) == 0
    (target / "m/.high_water_mark").write_text("x", encoding="utf-8")
    assert main(["archive", "verify", str(target), "--repair"]) == 0
    assert len(list(target.rglob("*"))) == 10
    assert {(path.stat().st_uid, path.stat().st_gid) for path in target.rglob("*")} == {(12345, 23456)}


def test_tar_file_is_neither_written_to_nor_read_from_a_terminal(archive: Path, target: Path) -> None:
    master, slave = pty.openpty()
    try:
        for arguments in (("export", str(archive), "m"), ("import", str(target), "-")):
            result = subprocess.run(
                [*COGMENT, "archive", *arguments],
                stdin=slave,
                stdout=slave,
                stderr=subprocess.PIPE,
                env=clean_environment(),
                timeout=PATIENCE_SECONDS,
                check=False,
            )
            assert result.returncode == 2
            assert b"terminal" in result.stderr
    finally:
        os.close(slave)
        os.close(master)


def test_export_and_import_show_a_bar_on_a_terminal(archive: Path, target: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "m.tar")
    code, output, shown = run_on_terminal("archive", "export", str(archive), "m", "--output", file)
    assert (code, output) == (0, "")
    assert "exporting" in shown
    code, output, shown = run_on_terminal("archive", "import", str(target), file)
    assert (code, output) == (0, "imported m: 3 versions, 2.3 KiB\n")
    assert "importing" in shown


def test_import_does_not_replace_an_existing_model(archive: Path, target: Path) -> None:
    data = export(archive)
    write_model(target, "m")
    before = tree(target / "m")
    with refused(target, message="exists already"):
        import_(target, data)
    assert tree(target / "m") == before
    import_(target, data, "n")
    with refused(target, message="exists already"):
        import_(target, data, "n")


def test_model_that_was_deleted_and_not_removed_is_neither_exported_nor_replaced(archive: Path, target: Path) -> None:
    data = export(archive)
    (write_model(target, "m") / ".deleted").touch()
    with refused(target, message="was deleted, but its files were not removed yet"):
        import_(target, data)
    with pytest.raises(NotFoundError):
        export(target)


def test_import_where_no_directory_can_be_renamed_is_refused_and_leaves_nothing(archive: Path, target: Path) -> None:
    class Keeping(Unsynced):
        def rename(self, directory: int, old: str, new: str) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    data = export(archive)
    with refused(target, UnavailableError, "cannot rename a directory"):
        import_(target, data, files=Keeping())


def test_import_does_not_replace_a_model_created_during_it(archive: Path, target: Path) -> None:
    data = export(archive)
    with pytest.raises(InvalidError, match="exists already"):
        import_(target, data, check_holder=lambda: write_model(target, "m"))
    assert os.listdir(target) == ["m"]
    assert os.listdir(target / "m") == ["m.yaml"]

    class Late(Unsynced):
        def rename(self, directory: int, old: str, new: str) -> None:
            write_model(target, "n")
            super().rename(directory, old, new)

    with pytest.raises(InvalidError, match="exists already"):
        import_(target, data, "n", files=Late())
    assert sorted(os.listdir(target)) == ["m", "n"]
    assert os.listdir(target / "n") == ["n.yaml"]


def sweep(target: Path, *, all_of_it: bool) -> None:
    """Remove what a starting server removes, or a part of it, since files are added concurrently."""
    for directory in target.glob(".~*"):
        for path in directory.iterdir():
            path.unlink()
        if all_of_it:
            directory.rmdir()


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("before", [3, 6, 8, 9])
def test_import_whose_files_a_starting_server_removed_fails_and_leaves_nothing(
    before: int, all_of_it: bool, archive: Path, target: Path
) -> None:
    class Swept(Unsynced):
        synced = 0

        def sync_file(self, file: int) -> None:
            self.synced += 1
            if self.synced == before:
                sweep(target, all_of_it=all_of_it)

        def sync_directory(self, directory: int) -> None:
            self.sync_file(directory)

    with refused(target, UnavailableError):
        import_(target, export(archive), files=Swept())


@pytest.mark.parametrize("at_call", [1, 2])
def test_import_fails_when_another_process_takes_the_archive(at_call: int, archive: Path, target: Path) -> None:
    calls: list[None] = []

    def check_holder() -> None:
        calls.append(None)
        if len(calls) == at_call:
            raise UnavailableError("taken")

    with refused(target, UnavailableError, "taken"):
        import_(target, export(archive), check_holder=check_holder)


class Failing(Files):
    """File operations of which one fails."""

    def __init__(self, operation: str, at_call: int) -> None:
        self._operation = operation
        self._left = at_call

    def _count(self, operation: str) -> None:
        if operation == self._operation:
            self._left -= 1
            if self._left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def create(self, directory: int, name: str) -> int:
        self._count("create")
        return super().create(directory, name)

    def sync_file(self, file: int) -> None:
        self._count("sync_file")

    def sync_directory(self, directory: int) -> None:
        self._count("sync_directory")

    def rename(self, directory: int, old: str, new: str) -> None:
        self._count("rename")
        super().rename(directory, old, new)


@pytest.mark.parametrize(
    ("operation", "at_call"),
    [("create", 1), ("create", 8), ("sync_file", 5), ("sync_directory", 1), ("sync_directory", 2), ("rename", 1)],
)
def test_import_whose_writing_fails_leaves_nothing(operation: str, at_call: int, archive: Path, target: Path) -> None:
    with refused(target, OSError):
        import_(target, export(archive), files=Failing(operation, at_call))


def test_import_to_a_full_disk_is_reported_in_one_line(archive: Path, target: Path, tmp_path: Path) -> None:
    write_version(archive / "m", 6, BIG)
    (tmp_path / "m.tar").write_bytes(export(archive))
    # Not by a `preexec_fn`, which would run in a fork of this process, where gRPC's handlers of forks may write a line.
    limited = ["bash", "-c", 'ulimit -f 1024 && exec "$@"', "bash"]  # in units of 1024 bytes
    result = run(*limited, *COGMENT, "archive", "import", str(target), str(tmp_path / "m.tar"))
    assert result.returncode == 1
    assert re.fullmatch(r"error: the import failed: not enough space: .*\n", result.stderr)
    assert os.listdir(target) == [".lock"]


def test_export_to_a_full_disk_is_reported_in_one_line(archive: Path) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*COGMENT, "archive", "export", str(archive), "m"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_SECONDS,
            check=False,
            env=clean_environment(),
        )
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"not enough space" in result.stderr


@contextlib.contextmanager
def stuck_import(archive: Path, target: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Return a context manager for an import that waits for the second half of its file."""
    data = export(archive)
    with subprocess.Popen(
        [*COGMENT, "archive", "import", str(target), "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    ) as process:
        try:
            assert process.stdin
            process.stdin.write(data[:5000])
            process.stdin.flush()
            wait_until(lambda: list(target.glob(".~*/*.yaml")))
            # Python would handle a signal just before a read only after the read.
            wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_import_ended_by_a_signal_leaves_nothing(
    number: signal.Signals, code: int, archive: Path, target: Path
) -> None:
    with stuck_import(archive, target) as process:
        process.send_signal(number)
        assert process.wait(START_SECONDS) == code
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
    assert os.listdir(target) == [".lock"]


def test_no_server_starts_during_an_import_and_leftovers_of_a_killed_import_are_removed(
    archive: Path, target: Path
) -> None:
    with stuck_import(archive, target) as process:
        result = run_cogment("services", "model_registry", "--port=0", f"--archive_dir={target}")
        assert (result.returncode, f"in use by process {process.pid}" in result.stderr) == (3, True)
        process.kill()
        process.wait(START_SECONDS)
    assert len(list(target.glob(".~*"))) == 1
    assert main(["archive", "verify", str(target)]) == 1
    with server_process(target):
        assert set(os.listdir(target)) - layout.CATALOG_NAMES == {".lock"}


async def test_model_moves_between_two_running_servers(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with server_process(first) as here, server_process(second) as there:
        async with connected(here.port) as client, connected(there.port) as other:
            await client.create_model("m", note="x")
            stored = [await client.store("m", data, user_data={"step": "1"}) for data in (b"one", BIG, b"")]
            await client.publish("m", b"transient")
            command = f"{' '.join(COGMENT)} archive"
            pipe = f'set -o pipefail; {command} export "$1" m | {command} import "$2" -'
            result = await asyncio.to_thread(run, "bash", "-c", pipe, "bash", str(first), str(second))
            assert (result.returncode, result.stderr) == (0, f"exported 3 versions: {size_text(len(BIG) + 3)}\n")
            assert f"process {there.pid} uses the archive: send it SIGHUP" in result.stdout
            assert list((await other.models()).model_infos) == []
            there.signal(signal.SIGHUP)
            await asyncio.to_thread(there.wait_for_line, "rescanned the archive")
            assert list((await other.infos("m")).version_infos) == stored
            assert [await other.data("m", number) for number in (1, 2, 3)] == [b"one", BIG, b""]
            assert dict((await other.models("m")).model_infos[0].user_data) == {"note": "x"}
            assert (await other.store("m", b"next")).version_number > 4  # 4 was transient
            result = await asyncio.to_thread(run_cogment, "archive", "verify", str(second))
            assert result.returncode == 0


def test_memory_does_not_grow_with_the_size_of_a_version(archive: Path, target: Path) -> None:
    from tests.archive_tools.test_damaged_archives import version_text  # noqa: PLC0415 # used here alone

    data = bytes(200 * 2**20)
    (archive / "m/m-v000006.yaml").write_text(version_text("m", 6, data), encoding="utf-8")
    with (archive / "m/m-v000006.data").open("wb") as file:
        file.truncate(len(data))
    del data
    code = (
        "import sys; from cogment_model_registry.cli import main; result = main(sys.argv[1:]); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(result)"
    )
    command = [sys.executable, "-c", code, "archive"]
    with (
        subprocess.Popen(
            [*command, "export", str(archive), "m"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as out,
        subprocess.Popen(
            [*command, "import", str(target), "-"], stdin=out.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as into,
    ):
        assert out.stdout
        out.stdout.close()
        for process in (into, out):
            assert process.stderr
            assert process.wait(PATIENCE_SECONDS) == 0
            assert int(process.stderr.read().split()[-1]) < 120 * 1024
    shutil.rmtree(target)
