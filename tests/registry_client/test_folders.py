"""Folders that are published as one version, and unpacked again."""

import asyncio
import contextlib
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogment_model_registry import Folder, VersionInfo, errors
from cogment_model_registry.client import packing, unpacking
from cogment_model_registry.client.packing import PackedFolder, header_of
from cogment_model_registry.client.unpacking import NewFolder
from cogment_model_registry.records import folders
from cogment_model_registry.records.folders import FOLDER_FORMAT
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB
from tests.locales import utf_8
from tests.processes import started
from tests.registry_client.conftest import opened
from tests.registry_client.network import Relay, listening
from tests.waiting import PATIENCE_SECONDS

LONG = "long " * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a folder may have."""
    root = tmp_path / "source"
    (root / "sub/deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "weights.bin").write_bytes(os.urandom(3 * MIB + 5))
    (root / "sub/config.json").write_text("{}")
    (root / "sub/deeper" / utf_8("\N{SNAKE}.txt")).write_text("snake")
    (root / "sub" / LONG.strip()).write_bytes(b"")
    (root / "run.sh").write_text("#!/bin/sh")
    (root / "run.sh").chmod(0o700)
    return root


def contents(root: Path) -> dict[str, tuple[bool, bytes]]:
    """Return what a folder has: whether each path is a folder or executable, and the bytes of files."""
    return {
        os.fsencode(path.relative_to(root)).decode(): (
            bool(path.stat().st_mode & stat.S_IXUSR),
            b"" if path.is_dir() else path.read_bytes(),
        )
        for path in root.rglob("*")
    }


def packed(root: Path | Folder) -> bytes:
    source = PackedFolder(root if isinstance(root, Folder) else Folder(root))
    data = b"".join(source.blocks(MIB))
    assert len(data) == source.size_bytes
    return data


def unpack(data: bytes, target: Path) -> None:
    """Unpack an archive, as a download does after it has checked the hash."""
    info = VersionInfo("policy", 1, 0, True, "", len(data), {"format": FOLDER_FORMAT})
    new = NewFolder(str(target))
    try:
        new.unpack(info, io.BytesIO(data))
    finally:
        new.close()


@pytest.mark.parametrize("tier", ["publish", "store"])
async def test_a_folder_is_published_and_unpacked(registry: Any, folder: Path, tmp_path: Path, tier: str) -> None:
    version = await getattr(registry, tier)("policy", folder, user_data={"step": 1})
    assert version.user_data == {"step": "1", "format": "folder.tar"}
    target = tmp_path / "target"
    assert await registry.download("policy", f"{target}/") == version
    assert contents(target) == contents(folder)
    assert sorted(os.listdir(tmp_path)) == ["archive", "source", "target"]
    again = await registry.publish("policy", f"{target}/")
    assert again.data_hash == version.data_hash


async def test_other_clients_see_the_bytes_of_a_tar_archive(registry: Any, folder: Path, tmp_path: Path) -> None:
    await registry.publish("policy", folder)
    data = await registry.retrieve("policy")
    assert data == packed(folder)
    await registry.download("policy", tmp_path / "policy.tar")
    assert (tmp_path / "policy.tar").read_bytes() == data
    with tarfile.open(tmp_path / "policy.tar") as archive:
        assert sorted(archive.getnames()) == sorted(contents(folder))
        assert {(each.mtime, each.uid, each.gid, each.uname, each.gname) for each in archive} == {(0, 0, 0, "", "")}
        assert {each.mode for each in archive} == {0o644, 0o755}


async def test_the_archive_may_be_published_as_the_folder_that_it_is(
    registry: Any, folder: Path, tmp_path: Path
) -> None:
    await registry.publish("copy", packed(folder), user_data={"format": "folder.tar"})
    await registry.download("copy", tmp_path / "target", unpack=True)
    assert contents(tmp_path / "target") == contents(folder)


async def test_user_data_must_not_say_that_a_folder_is_something_else(registry: Any, folder: Path) -> None:
    with pytest.raises(errors.InvalidError, match="'safetensors', but a folder is published as"):
        await registry.publish("policy", folder, user_data={"format": "safetensors"})


def test_the_same_folder_gives_the_same_bytes_for_every_python_and_system(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    for name, text in {"b/a.txt": "x", "b!": "y", "a/ü/é": "z", LONG.strip(): "long"}.items():
        (root / utf_8(name)).parent.mkdir(parents=True, exist_ok=True)
        (root / utf_8(name)).write_text(text)
    assert (
        hashlib.sha256(packed(root)).hexdigest() == "af85b509f4c541dc0b95e9077ea1efa362fc68f370db18ec232cbb3df9464d2d"
    )


def test_times_owners_links_and_other_permissions_change_nothing(folder: Path, tmp_path: Path) -> None:
    before = packed(folder)
    os.utime(folder / "run.sh", (1, 1))
    (folder / "run.sh").chmod(0o755)
    (folder / "sub/config.json").chmod(0o600)
    os.link(folder / "sub/config.json", tmp_path / "link")
    assert packed(folder) == before
    (folder / "run.sh").chmod(0o644)
    assert packed(folder) != before


@pytest.mark.parametrize("block_bytes", [1, 511, 512, 1000, 10**9])
def test_an_upload_may_go_on_from_any_byte(tmp_path: Path, block_bytes: int) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/file").write_bytes(bytes(range(256)) * 3)
    (tmp_path / "z").write_bytes(b"z")
    source = PackedFolder(Folder(tmp_path))
    data = b"".join(source.blocks(MIB))
    for start in {*range(0, len(data) + 1, 97), 511, 512, 513, len(data) - 1, len(data)}:
        blocks = list(source.blocks(block_bytes, start))
        assert b"".join(blocks) == data[start:]
        assert all(0 < len(block) <= block_bytes for block in blocks)


def test_links_to_files_in_the_folder_are_packed_as_these_files(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "snapshot").mkdir(parents=True)
    (cache / "blob").write_bytes(b"weights")
    (cache / "snapshot/model.bin").symlink_to("../blob")
    with pytest.raises(errors.InvalidError, match="link to something outside of the folder"):
        packed(cache / "snapshot")
    unpack(packed(Folder(cache / "snapshot", links_within=cache)), tmp_path / "target")
    assert (tmp_path / "target/model.bin").read_bytes() == b"weights"
    assert not (tmp_path / "target/model.bin").is_symlink()


def _link_out(root: Path) -> None:
    (root / "x").symlink_to("/etc/hostname" if os.path.exists("/etc/hostname") else sys.executable)


def _link_to_a_folder(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "x").symlink_to("sub")


def _loop(root: Path) -> None:
    (root / "x").symlink_to("x")


def _long_name_of_a_device(root: Path) -> None:
    (root / "NUL.bin").write_text("")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out of the folder": (_link_out, "outside of the folder"),
    "a link to a folder": (_link_to_a_folder, "only links to files can be packed"),
    "a link to nothing": (lambda root: (root / "x").symlink_to("nothing"), "is a broken link"),
    "a link to itself": (_loop, "is a broken link"),
    "a pipe": (lambda root: os.mkfifo(root / "x"), "neither a file nor a folder"),
    "a name that is not UTF-8": (lambda root: open(os.fsencode(root) + b"/\xff", "w").close(), "is not UTF-8"),
    "a device of Windows": (_long_name_of_a_device, "a device on Windows"),
    "a name in two cases": (lambda root: [(root / name).write_text("") for name in "xX"], "ignores case"),
    "a backslash": (lambda root: (root / "a\\b").write_text(""), "the character"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_folder_with_something_that_no_version_has_is_refused(registry: Any, tmp_path: Path, what: str) -> None:
    root = tmp_path / "source"
    root.mkdir()
    make, reason = REFUSED[what]
    make(root)
    with pytest.raises(errors.InvalidError, match=reason):
        await registry.publish("policy", root)
    assert await registry.list_models() == []


def test_too_many_files_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ENTRIES_MAX", 20)
    monkeypatch.setattr(packing, "ENTRIES_MAX", 20)
    for number in range(21):
        (tmp_path / str(number)).touch()
    with pytest.raises(errors.InvalidError, match="may have 20 files and folders"):
        PackedFolder(Folder(tmp_path))
    (tmp_path / "0").unlink()
    PackedFolder(Folder(tmp_path))


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _swap(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def _link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


@pytest.mark.parametrize("change", [_grow, _swap, _link, Path.unlink, lambda path: os.truncate(path, 10)])
def test_a_file_that_changes_during_the_upload_is_noticed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "file").write_bytes(b"x" * 1000)
    source = PackedFolder(Folder(root))
    change(root / "file")
    with pytest.raises((errors.InvalidError, OSError)):
        list(source.blocks(MIB))


def test_a_file_that_is_overwritten_during_the_upload_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    os.utime(tmp_path / "file", (1, 1))
    source = PackedFolder(Folder(tmp_path))
    before = list(source.blocks(MIB))
    assert list(source.blocks(MIB)) == before
    with (tmp_path / "file").open("r+b") as file:  # the same file, of the same size
        file.write(b"y")
    with pytest.raises(errors.InvalidError, match="changed while its folder was uploaded"):
        list(source.blocks(MIB))


def test_hidden_files_and_empty_folders_are_packed(tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / ".hidden/.empty").mkdir(parents=True)
    (root / ".hidden/.file").write_text("x")
    (root / ".empty_file").touch()
    unpack(packed(root), tmp_path / "target")
    assert sorted(contents(tmp_path / "target")) == [".empty_file", ".hidden", ".hidden/.empty", ".hidden/.file"]


def test_the_umask_changes_no_byte_and_applies_to_what_is_unpacked(folder: Path, tmp_path: Path) -> None:
    data = packed(folder)
    before = os.umask(0o077)
    try:
        unpack(data, tmp_path / "target")
    finally:
        os.umask(before)
    assert packed(tmp_path / "target") == data
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "target").rglob("*")}
    assert (modes["weights.bin"], modes["run.sh"], modes["sub"]) == (0o600, 0o700, 0o700)


def test_a_large_file_is_read_in_blocks_and_needs_no_memory(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(20 * 2**30)
    source = PackedFolder(Folder(tmp_path))
    assert source.size_bytes > 20 * 2**30
    first = next(iter(source.blocks(MIB, 20 * 2**30)))
    assert len(first) <= MIB


def test_a_header_of_a_file_of_any_size_is_read_as_it_was_written() -> None:
    for path in ("a", "ü", LONG.strip(), "/".join(["d" * 60] * 5)):
        for size_bytes in (0, 1, 8**11 - 1, 8**11, 2**60):
            header = header_of(path, size_bytes, is_folder=False, is_executable=True)
            (member,) = [next(iter(unpacking._members(io.BytesIO(header), len(header) + size_bytes)))]
            assert (member.path, member.size_bytes, member.start) == (path, size_bytes, len(header))
            assert member.is_executable
            assert not member.is_folder


async def test_an_interrupted_upload_of_a_folder_goes_on(flavour: str, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for number in range(40):
        (root / f"{number}.bin").write_bytes(os.urandom(MIB // 4 + number))
    relay = Relay(server.port)
    async with listening(relay.relay) as port, opened(flavour, port) as registry:
        cut = threading.Event()

        def interrupt(progress: Any) -> None:
            if progress.done_bytes >= 6 * MIB and not cut.is_set():
                cut.set()
                loop.call_soon_threadsafe(relay.cut)

        loop = asyncio.get_running_loop()
        await registry.store("policy", root, progress=interrupt)
        assert cut.is_set()
        await registry.download("policy", f"{tmp_path / 'target'}/")
    assert contents(tmp_path / "target") == contents(root)


async def test_an_interrupted_download_of_a_folder_goes_on(registry: Any, folder: Path, tmp_path: Path) -> None:
    class Interruption(Exception):
        pass

    def interrupt(progress: Any) -> None:
        if progress.done_bytes > MIB:
            raise Interruption

    await registry.store("policy", folder)
    target = tmp_path / "target"
    with pytest.raises(Interruption):
        await registry.download("policy", f"{target}/", resume=True, progress=interrupt)
    partial = ["target.tar.cogment-partial", "target.tar.cogment-partial.journal"]
    assert sorted(os.listdir(tmp_path)) == ["archive", "source", *partial]
    await registry.download("policy", f"{target}/", resume=True)
    assert contents(target) == contents(folder)
    assert sorted(os.listdir(tmp_path)) == ["archive", "source", "target"]


async def test_a_folder_is_unpacked_to_where_nothing_is(registry: Any, folder: Path, tmp_path: Path) -> None:
    version = await registry.publish("policy", folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    reports: list[object] = []
    for path in (tmp_path / "full", f"{tmp_path / 'full'}/", f"{tmp_path / 'file'}/"):
        with pytest.raises(FileExistsError):
            await registry.download("policy", path, progress=reports.append)
    assert reports == []
    assert (tmp_path / "full/file").read_text() == (tmp_path / "file").read_text() == "mine"
    assert await registry.download("policy", tmp_path / "empty") == version
    assert contents(tmp_path / "empty") == contents(folder)
    (tmp_path / "link").symlink_to("elsewhere")
    await registry.download("policy", f"{tmp_path / 'link'}/")
    assert contents(tmp_path / "elsewhere") == contents(folder)
    with pytest.raises(FileNotFoundError):
        await registry.download("policy", f"{tmp_path / 'nowhere/target'}/")


async def test_a_version_that_is_not_a_folder_is_not_unpacked(registry: Any, tmp_path: Path) -> None:
    await registry.publish("policy", b"weights")
    for path, unpacks in ((f"{tmp_path / 'new'}/", None), (tmp_path / "new", True)):
        with pytest.raises(errors.InvalidError, match='version 1 of model "policy" is not a folder'):
            await registry.download("policy", path, unpack=unpacks)
    await registry.publish("policy", b"no archive" * 100, user_data={"format": "folder.tar"})
    with pytest.raises(
        errors.InvalidError, match='version 2 of model "policy" cannot be unpacked: it is not a tar archive'
    ):
        await registry.download("policy", f"{tmp_path / 'new'}/")
    assert os.listdir(tmp_path) == ["archive"]


async def test_a_signed_folder_is_verified_before_it_is_unpacked(registry: Any, folder: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    await registry.publish("policy", folder, sign=key)
    with pytest.raises(errors.SignatureError):
        await registry.download("policy", f"{tmp_path / 'new'}/", verify=other.public_key())
    assert not (tmp_path / "new").exists()
    await registry.download("policy", f"{tmp_path / 'new'}/", verify=key.public_key())
    assert contents(tmp_path / "new") == contents(folder)


async def test_a_cancelled_download_leaves_no_folder(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, goes_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        began.set()
        goes_on.wait(PATIENCE_SECONDS)

    def close(new: NewFolder) -> None:
        goes_on.set()
        finish(new)

    finish = NewFolder.close
    async with opened("asyncio", server.port) as registry:
        await registry.publish("policy", folder)
        monkeypatch.setattr(os, "fsync", slow)
        monkeypatch.setattr(NewFolder, "close", close)
        task = asyncio.ensure_future(registry.download("policy", f"{tmp_path / 'new'}/"))
        await asyncio.to_thread(began.wait, PATIENCE_SECONDS)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert sorted(os.listdir(tmp_path)) == ["archive", "source"]


DISK_FULL = """
import os, resource, signal, sys
from cogment_model_registry import ModelRegistry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with ModelRegistry(sys.argv[1], progress=False) as registry:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, 2 * 2**20))
    try:
        registry.download("policy", sys.argv[2])
    except OSError as error:
        print(type(error).__name__, os.listdir(os.path.dirname(os.path.dirname(sys.argv[2]))))
"""


async def test_a_folder_that_cannot_be_written_leaves_nothing(
    registry: Any, server: Server, folder: Path, tmp_path: Path
) -> None:
    await registry.publish("policy", folder)
    (tmp_path / "here").mkdir()
    process = started(DISK_FULL, f"grpc://127.0.0.1:{server.port}", f"{tmp_path / 'here/target'}/")
    output, text = await asyncio.to_thread(process.communicate, timeout=PATIENCE_SECONDS)
    assert output == "OSError []\n", text


# Hostile archives.


def archive_of(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member in members:
            info, data = member if isinstance(member, tuple) else (member, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", pax: dict[str, str] | None = None
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax or {}
    return info


def _with_size(size_bytes: int) -> bytes:
    data = bytearray(archive_of((member("file"), b"x")))
    info = tarfile.TarInfo("file")
    info.size = size_bytes
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    return bytes(data)


def _checked(header: bytearray) -> bytes:
    """Return a header with a checksum that fits, so that its other fields are looked at."""
    total = 256 + sum(header[:148]) + sum(header[156:512])
    header[148:156] = b"%06o\0 " % total
    return bytes(header)


def _with_prefix(prefix: bytes) -> bytes:
    data = bytearray(archive_of((member("escaped"), b"x")))
    data[345 : 345 + len(prefix)] = prefix
    return _checked(data[:512]) + bytes(data[512:])


def _with_two_extensions() -> bytes:
    data = archive_of((member("file", pax={"path": "a"}), b"x"))
    return data[:1024] + data


def _not_utf_8() -> bytes:
    data = bytearray(archive_of((member("file"), b"x")))
    data[3] = 0xFF
    return _checked(data[:512]) + bytes(data[512:])


HOSTILE = {
    "absolute": archive_of((member("/tmp/escaped"), b"x")),
    "above": archive_of((member("../escaped"), b"x")),
    "above, in the middle": archive_of(member("a", tarfile.DIRTYPE), (member("a/../../escaped"), b"x")),
    "above, by PAX": archive_of((member("harmless", pax={"path": "../escaped"}), b"x")),
    "drive": archive_of((member("C:\\escaped"), b"x")),
    "symbolic link": archive_of(member("link", tarfile.SYMTYPE, "/tmp")),
    "through a link": archive_of(member("link", tarfile.SYMTYPE, ".."), (member("link/escaped"), b"x")),
    "hard link": archive_of(member("link", tarfile.LNKTYPE, "/etc/passwd")),
    "character device": archive_of(member("device", tarfile.CHRTYPE)),
    "block device": archive_of(member("device", tarfile.BLKTYPE)),
    "pipe": archive_of(member("pipe", tarfile.FIFOTYPE)),
    "contiguous": archive_of((member("file", tarfile.CONTTYPE), b"x")),
    "sparse of GNU": archive_of((member("file", tarfile.GNUTYPE_SPARSE), b"x" * 512)),
    "sparse of PAX": archive_of((member("file", pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), b"1\n")),
    "long name of GNU": archive_of((member("x" * 200), b"x"), form=tarfile.GNU_FORMAT),
    "other field of PAX": archive_of((member("file", pax={"comment": "x"}), b"x")),
    "global field of PAX": archive_of((member("file", tarfile.XGLTYPE), b"18 path=../escaped\n")),
    "twice": archive_of((member("file"), b"x"), (member("file"), b"y")),
    "in two cases": archive_of((member("file"), b"x"), (member("FILE"), b"y")),
    "file as folder": archive_of((member("file"), b"x"), (member("file/x"), b"y")),
    "folder comes later": archive_of((member("a/file"), b"x"), member("a", tarfile.DIRTYPE)),
    "folder with bytes": archive_of((member("a", tarfile.DIRTYPE), b"x" * 512)),
    "larger than it is": _with_size(10**12),
    "negative": _with_size(-1024),
    "huge": _with_size(2**80),
    "huge by PAX": archive_of((member("file", pax={"size": "9" * 30}), b"x")),
    "negative by PAX": archive_of((member("file", pax={"size": "-512"}), b"x")),
    "negative length of PAX": archive_of((member("file", pax={"path": "x"}), b"")).replace(b"9 path=x\n", b"-9 path=x"),
    "no text of PAX": archive_of((member("file", pax={"path": "xx"}), b"")).replace(b"path=xx", b"path=\xff\xff"),
    "new line by PAX": archive_of((member("file", pax={"path": "a\nb"}), b"x")),
    "nothing by PAX": archive_of((member("file", pax={"path": ""}), b"x")),
    "not UTF-8": _not_utf_8(),
    "above, by the prefix of ustar": _with_prefix(b".."),
    "absolute, by the prefix of ustar": _with_prefix(b"/tmp"),
    "device of Windows": archive_of((member("NUL.txt"), b"x")),
    "stream of Windows": archive_of((member("file:stream"), b"x")),
    "in two compositions": archive_of((member("ü"), b"x"), (member("u\u0308"), b"y")),
    "too deep": archive_of(*(member("/".join(["d" * 100] * depth), tarfile.DIRTYPE) for depth in range(1, 12))),
    "huge extension": archive_of((member("file", pax={"path": "x" * 20_000}), b"x")),
    "two extensions": _with_two_extensions(),
    "compressed": b"\x1f\x8b" + bytes(510) + archive_of(member("a", tarfile.DIRTYPE)),
    "no end": archive_of((member("file"), b"x"))[:1024],
    "half a header": archive_of((member("file"), b"x"))[:300],
    "nothing": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(errors.InvalidError, match='version 1 of model "policy" cannot be unpacked: '):
        unpack(HOSTILE[what], inside / "target")
    assert os.listdir(tmp_path) == ["inside"]
    assert os.listdir(inside) == []


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "ENTRIES_MAX", 20)
    data = archive_of(*(member(str(number)) for number in range(21)))
    with pytest.raises(errors.InvalidError, match="may have 20 files and folders"):
        unpack(data, tmp_path / "target")
    assert os.listdir(tmp_path) == []


def test_owners_and_permissions_of_an_archive_do_not_count(tmp_path: Path) -> None:
    info = member("file")
    info.mode, info.uid, info.mtime = 0o7777, 4711, 10**9
    unpack(archive_of((info, b"x")), tmp_path / "target")
    status = (tmp_path / "target/file").stat()
    assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWOTH)
    assert status.st_uid == os.getuid()
    assert status.st_mtime > 10**9


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees")


_names = st.text(st.sampled_from("aAbü.- _\N{SNAKE}"), min_size=1, max_size=6)
_trees = st.recursive(st.binary(max_size=600), lambda each: st.dictionaries(_names, each, max_size=4), max_leaves=12)


def _write(tree: dict[str, Any], root: Path) -> None:
    root.mkdir()
    for name, each in tree.items():
        if isinstance(each, dict):
            _write(each, root / utf_8(name))
        else:
            (root / utf_8(name)).write_bytes(each)


@given(tree=st.dictionaries(_names.filter(lambda name: name not in (".", "..")), _trees, max_size=5), number=st.uuids())
@settings(max_examples=60)
def test_any_folder_comes_back_as_it_was_or_is_refused(trees: Path, tree: dict[str, Any], number: Any) -> None:
    root, target = trees / f"{number}.source", trees / f"{number}.target"
    try:
        _write(tree, root)
    except (OSError, ValueError):  # such as a name of dots
        return
    try:
        data = packed(root)
    except errors.InvalidError:
        return
    unpack(data, target)
    assert contents(target) == contents(root)
    assert packed(target) == data


@given(data=st.data(), number=st.uuids())
@settings(max_examples=150)
def test_a_damaged_archive_never_leads_out_of_its_folder(trees: Path, data: st.DataObject, number: Any) -> None:
    good = archive_of(
        member("a", tarfile.DIRTYPE),
        (member("a/file"), b"x" * 700),
        (member("ü" * 60, pax={"path": "a/long"}), b"y"),
        member("b"),
    )
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(good) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
    fixed = data.draw(st.booleans())
    for start in range(0, len(damaged) - 512, 512) if fixed else ():
        block = damaged[start : start + 512]
        if block[257:262] == b"ustar":
            damaged[start : start + 512] = _checked(block)
    place = trees / str(number)
    place.mkdir(exist_ok=True)
    before = set(os.listdir(place))
    with contextlib.suppress(errors.InvalidError):
        unpack(bytes(damaged), place / f"{len(before)}")
    assert set(os.listdir(place)) - before <= {f"{len(before)}"}
    assert not any(path.is_symlink() for path in place.rglob("*"))


@pytest.mark.skipif(not os.path.exists("/bin/tar"), reason="there is no tar")
def test_tar_reads_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.tar").write_bytes(packed(folder))
    (tmp_path / "by_tar").mkdir()
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(["/bin/tar", "-xf", tmp_path / "policy.tar", "-C", tmp_path / "by_tar"], check=True, env=environment)
    assert contents(tmp_path / "by_tar") == contents(folder)
