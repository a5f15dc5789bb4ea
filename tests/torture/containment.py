"""Nothing outside the archive directory is read or written, whatever ids say and whatever is planted in it.

Around the archive are files and directories whose names a path traversal would hit, and a complete second archive.
In the archive are symbolic links to them, in place of everything that the server opens: models, metadata, data, marks,
temporary names. Then a real server receives ids with path traversals in every call that takes an id, rescans the
archive, and is restarted, while the links are planted repeatedly.

The surroundings must be unchanged afterwards, to the nanosecond of their times. Since reading leaves no trace there,
inotify reports everything that is opened: it must report nothing.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import itertools
import os
import shutil
import signal
import struct
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio

from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from tests.archive_tools.test_damaged_archives import version_text
from tests.client import connected
from tests.processes import ServerProcess
from tests.torture.fuzzed_messages import delimited
from tests.torture.proof import Figures, Proof
from tests.waiting import wait_until

OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
_MEANINGFUL = {OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.RESOURCE_EXHAUSTED}
_SECRET = "what lies outside of the archive"
_HARMLESS = b"what lies in the archive"
_AT_ONCE = 60
_STRETCH = 2500
"""The largest number of ids between two rounds of planted links and files."""

_LIFECYCLE_METHODS = "UpdateVersion", "PromoteVersion", "SetAliases", "ListVersions", "ReadVersion", "DeleteVersion"
_WATCH_SECONDS = 0.2
_ANEW = "rescanned the archive"
_LINKED_MODELS = ("absolute", "relative", "dangling", "loop", "file", "m", "whole")
_PLANTED = ("planted", "linkedyaml", *_LINKED_MODELS)


# The surroundings of the archive.


def build_surroundings(around: Path) -> None:
    """Create the parent directory of the archive, with the files that path traversals would hit."""
    (around / "archive").mkdir(parents=True)
    for directory in (around, around / "m", around / "sibling" / "planted", around / "sibling" / "m"):
        directory.mkdir(parents=True, exist_ok=True)
        for model_id in {directory.name, "m", "planted", "archive", "secret"}:
            text = f"model_id: {model_id}\nuser_data: {{secret: {_SECRET}}}\n"
            (directory / f"{model_id}.yaml").write_text(text)
            for number in (1, 2, 3, 4):
                data = _SECRET.encode()
                changes = {"user_data": f"{{secret: {_SECRET}}}"}
                (directory / f"{model_id}-v{number:06d}.yaml").write_text(
                    version_text(model_id, number, data, **changes)
                )
                (directory / f"{model_id}-v{number:06d}.data").write_bytes(data)
        for name in (".high_water_mark", ".~1", "mark", "yaml", "-v000001.yaml", "%2e"):
            (directory / name).write_text("500000\n")
    (around / "sibling" / ".lock").write_text("1\n")


def plant(archive: Path, random: Random) -> None:
    """Put models with links to the outside into the archive, replacing what has their names."""
    outside = archive.parent
    for name in (*_PLANTED, ".~777", ".~888"):
        _remove(archive / name)
    way_out = random.choice((str(outside), ".."))
    targets = {
        "absolute": str(outside / "sibling" / "planted"),
        "relative": "../sibling/planted",
        "dangling": "../nothing",
        "loop": "loop",
        "file": "../secret.yaml",
        "m": f"{way_out}/m",
        "whole": way_out,
        ".~777": "../sibling",
    }
    for name, target in targets.items():
        (archive / name).symlink_to(target)
    _plant_doomed(archive / ".~888")
    _plant_model(archive / "planted", random)
    (archive / "linkedyaml").mkdir()
    (archive / "linkedyaml" / "linkedyaml.yaml").symlink_to("../../m/m.yaml")


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _plant_doomed(directory: Path) -> None:
    """Create a model whose deletion was interrupted, which the server removes when it starts."""
    (directory / "inner").mkdir(parents=True)
    for place, up in ((directory, "../.."), (directory / "inner", "../../..")):
        (place / "m").symlink_to(f"{up}/m")
        (place / "secret.yaml").symlink_to(f"{up}/secret.yaml")
        (place / "hard").write_bytes(_HARMLESS)


def _plant_model(directory: Path, random: Random) -> None:
    """Create a model with one intact version, and links in place of everything else."""
    outside = random.choice(("../../sibling/planted", str(directory.parent.parent / "sibling" / "planted")))
    directory.mkdir()
    (directory / "planted.yaml").write_text("model_id: planted\nuser_data: {}\n")
    for number in (1, 2, 3, 4):
        name = f"planted-v{number:06d}"
        for ending, linked in (("yaml", number in (2, 4)), ("data", number in (3, 4))):
            path = directory / f"{name}.{ending}"
            if linked:
                path.symlink_to(f"{outside}/{name}.{ending}")
            elif ending == "yaml":
                # The same as the one outside, so that its data would be served if the link were followed.
                data = _SECRET.encode() if number == 3 else _HARMLESS
                path.write_text(version_text("planted", number, data))
            else:
                path.write_bytes(_HARMLESS)
    (directory / ".high_water_mark").symlink_to(f"{outside}/mark")
    (directory / ".~1").symlink_to(f"{outside}/.~1")
    (directory / ".~2").symlink_to(outside)
    (directory / "planted-v000009.data").symlink_to(f"{outside}/not there yet")


def appearance(around: Path) -> dict[str, tuple[object, ...]]:
    """Return the status and the content of each entry around the archive."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(around):
        if directory == str(around):
            names.remove("archive")
        for path in (Path(directory), *(Path(directory) / name for name in files)):
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found[str(path)] = (status.st_ino, status.st_mode, status.st_nlink, status.st_size, *times, content)
    return found


class Traps:
    """Records every access to files and directories around the archive. See inotify(7).

    Args:
        around: The directory, in which everything is watched except the archive.
    """

    _ALL_EVENTS = 0xFFF
    _OPENED_AND_CLOSED = 0x40000000 | 0x20 | 0x10  # IN_ISDIR, IN_OPEN, IN_CLOSE_NOWRITE: neither read nor written
    _EVENT = struct.Struct("iIII")

    def __init__(self, around: Path) -> None:
        self._around = str(around)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        self._paths = {self._watch(path): path for path in [str(around.parent), *appearance(around)]}

    def _watch(self, path: str) -> int:
        watch: int = self._libc.inotify_add_watch(self._descriptor, path.encode(), self._ALL_EVENTS)
        assert watch >= 0, f"{path}: {os.strerror(ctypes.get_errno())}"
        return watch

    def events(self) -> list[str]:
        """Return the events since the last call."""
        reported: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._descriptor, 65536):
                reported += self._decoded(data)
        return reported

    def _decoded(self, data: bytes) -> Iterator[str]:
        while data:
            watch, mask, _, size = self._EVENT.unpack_from(data)
            end = self._EVENT.size + size
            name = data[self._EVENT.size : end].rstrip(b"\0").decode()
            data = data[end:]
            path = self._paths.get(watch, "something that is not watched")
            if not self._is_allowed(path, name, mask):
                yield f"{path} {name}: {mask:#x}"

    def _is_allowed(self, path: str, name: str, mask: int) -> bool:
        """Return whether the server may do this: open the archive, and sync its parent directory."""
        if (path, name) == (self._around, "archive"):
            return True
        is_around = (path == self._around and not name) or os.path.join(path, name) == self._around
        return is_around and mask & ~self._OPENED_AND_CLOSED == 0

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)


# Ids.

_PARTS = [
    *("..", ".", "/", "/", "\\", "../", "../../", "%2e", "%2e%2e%2f", "%2f", "\0", "//", "./", "~", "~/", "$HOME"),
    *(
        "\u2215",
        "\u2044",
        "\uff0f",
        "\u29f5",
        "\uff3c",
        "\uff0e",
        "\uff0e\uff0e",
        "\u2024",
        "\u2025",
        "\u2026",
        "\u2105",
    ),
    *("m", "m", "planted", "sibling", "secret", "archive", "whole", "absolute", "relative", "etc", "passwd", "new"),
    *(".yaml", ".data", "-v000001.yaml", "-v000001", "-v1", ".high_water_mark", ".lock", ".~1", ".~777", "mark"),
    *(" ", "\n", "\t", "\u202e", "\u200b", "\u00ad", "\ufeff", "é", "e\u0301", "模", ":", "C:", "+", "=", "(", ","),
    *("x" * 60, "x" * 128, "é" * 64, "_", "-", "1", "*", "?", "|", ";", "`", "\x7f", "\x1b[0m"),
]
_RAW_PARTS = [
    b"\xc0\xae\xc0\xae",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xff",
    b"\xf0\x80\x80\xaf",
    b"\xc0\x80",
]


def made_up_id(random: Random, around: Path) -> bytes:
    """Return an id that is planted, a path traversal, or anything in between."""
    if random.random() < 0.1:
        return random.choice(_PLANTED).encode()
    parts = [random.choice(_PARTS) for _ in range(random.choice((1, 1, 2, 2, 3, 4, 6)))]
    if random.random() < 0.05:
        parts.insert(0, str(random.choice((around, around / "m", around / "sibling" / "planted", Path("/etc/passwd")))))
    model_id = "".join(parts).encode()
    if random.random() < 0.05:
        position = random.randrange(len(model_id) + 1)
        model_id = model_id[:position] + random.choice(_RAW_PARTS) + model_id[position:]
    return model_id


def is_name(model_id: bytes) -> bool:
    """Return whether an id is allowed, by the rule in the documentation."""
    try:
        text = model_id.decode()
    except UnicodeDecodeError:
        return False
    forms = (text, unicodedata.normalize("NFKC", text))
    return 1 <= len(model_id) <= 128 and unicodedata.is_normalized("NFC", text) and all(map(_is_plain, forms))


def _is_plain(text: str) -> bool:
    kinds = [unicodedata.category(character) for character in text]
    allowed = all(
        kind[0] in "LM" or kind == "Nd" or character in "_-.:+=@~(), "
        for kind, character in zip(kinds, text, strict=True)
    )
    return allowed and (text[0] == "_" or kinds[0][0] == "L" or kinds[0] == "Nd") and text[-1] not in " ."


# The calls.


class _Caller:
    """Makes every call that takes an id."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], random: Random, figures: Figures, around: Path) -> None:
        self._channels = itertools.cycle(channels)
        self._random = random
        self._figures = figures
        self._around = around

    async def try_ids(self, rounds: Iterator[int]) -> None:
        """Try ids until there were enough."""
        for _ in rounds:
            await self._try_id(made_up_id(self._random, self._around))

    async def _try_id(self, model_id: bytes) -> None:
        calls = self._calls(model_id)
        if self._random.random() < 0.3:
            self._random.shuffle(calls)
        channel: Any = next(self._channels)
        for method, messages in calls:
            expected = _expected(model_id)
            if method in _LIFECYCLE_METHODS and is_name(model_id):  # not every id is allowed as an alias
                expected = {*expected, INVALID, grpc.StatusCode.FAILED_PRECONDITION}
            code = await self._code(channel, method, messages, may_wait=OK in expected)
            self._figures.count("calls")
            assert code in expected, f"{method} of id {model_id!r} ended with {code}, not with {expected}"
        self._figures.count("ids")
        self._figures.count("ids that are names", is_name(model_id))

    def _calls(self, model_id: bytes) -> list[tuple[str, list[bytes]]]:
        """Return the calls: their names and their messages."""
        field = delimited(1, model_id)
        archived = self._random.random() < 0.5
        version = m.ModelVersionInfo(data_size=len(_HARMLESS), archived=archived).SerializeToString()
        upload = [delimited(1, delimited(1, field + version)), delimited(2, delimited(1, _HARMLESS))]
        number = m.RetrieveVersionDataRequest(version_number=self._random.choice((-1, 1, 2, 3, 4))).SerializeToString()
        numbers = m.RetrieveVersionInfosRequest(version_numbers=[-1, 2, 3, 4]).SerializeToString()
        calls = [
            ("RetrieveVersionInfos", [field + (numbers if archived else b"")]),
            ("RetrieveVersionData", [field + number]),
            ("CreateOrUpdateModel", [delimited(1, field)]),
            ("RetrieveModels", [field]),
            ("CreateVersion", upload),
            ("RetrieveVersionData", [field]),
            ("VersionUpdate", [field]),
        ]
        ref = delimited(1, field + delimited(3, model_id)) if archived else delimited(1, field + b"\x10\x02")
        calls += [
            ("UpdateVersion", [ref + delimited(2, delimited(1, b"tag") + delimited(2, model_id))]),
            ("PromoteVersion", [ref + delimited(2, model_id)]),
            ("SetAliases", [field + delimited(2, delimited(1, model_id) + b"\x10\x02")]),
            *([("ListVersions", [field])] if model_id else []),  # without an id, it lists the versions of all models
            ("ReadVersion", [ref]),
            ("DeleteVersion", [ref]),
        ]
        if model_id.decode(errors="replace") not in _PLANTED or self._random.random() < 0.05:
            calls.append(("DeleteModel", [field]))
        return calls

    async def _code(self, channel: Any, method: str, messages: list[bytes], *, may_wait: bool) -> grpc.StatusCode:
        """Make a call, and return its status. Do not wait for a watch that may stay open."""
        path = f"/{lifecycle.SERVICE_NAME if method in _LIFECYCLE_METHODS else m.SERVICE_NAMES[0]}/{method}"
        try:
            if method == "CreateVersion":
                self._look_at(await channel.stream_unary(path)(iter(messages), timeout=60))
            elif method == "VersionUpdate":
                watch = channel.unary_stream(path)(messages[0], timeout=_WATCH_SECONDS if may_wait else 60)
                self._look_at(await watch.read())
                watch.cancel()
            elif method in ("RetrieveVersionData", "ReadVersion"):
                async for reply in channel.unary_stream(path)(messages[0], timeout=60):
                    self._look_at(reply)
            else:
                self._look_at(await channel.unary_unary(path)(messages[0], timeout=60))
        except grpc.aio.AioRpcError as error:
            self._look_at((error.details() or "").encode())
            if may_wait and method == "VersionUpdate" and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return OK  # our own deadline, of a watch that has nothing to send
            return error.code()
        return OK

    def _look_at(self, reply: object) -> None:
        if isinstance(reply, bytes):
            assert _SECRET.encode() not in reply, f"a reply has bytes from outside the archive: {reply!r}"


def _expected(model_id: bytes) -> set[grpc.StatusCode]:
    """Return the expected status of a call with an id."""
    if not is_name(model_id):
        return {INVALID}
    # If a link has the name of a model, its directory cannot be created.
    planted = model_id.decode() in _PLANTED
    return {*_MEANINGFUL, grpc.StatusCode.UNAVAILABLE} if planted else _MEANINGFUL


async def _try_ids(port: int, rounds: int, random: Random, figures: Figures, around: Path) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(port)) for _ in range(4)]
        caller = _Caller([client.channel for client in clients], random, figures, around)
        remaining = iter(range(rounds))
        trying = [asyncio.create_task(caller.try_ids(remaining)) for _ in range(_AT_ONCE)]
        try:
            for task in asyncio.as_completed(trying):
                await task
        finally:
            for task in trying:
                task.cancel()
            await asyncio.gather(*trying, return_exceptions=True)


def _rescan(server: ServerProcess) -> None:
    """Let the server rescan the archive, and wait until it is done."""

    def times() -> int:
        return sum(_ANEW in line for line in server.lines)

    before = times()
    server.signal(signal.SIGHUP)
    wait_until(lambda: times() > before)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Try to make the server leave the archive."""
    around = place / "around"
    build_surroundings(around)
    before = appearance(around)
    figures.count("entries outside the archive that were opened or changed", 0)
    with contextlib.closing(Traps(around)) as traps:
        (around / "secret.yaml").read_bytes()
        assert traps.events(), "inotify does not report an access"
        _go_through(around, rounds, random, figures)
        events = traps.events()
        assert not events, f"the server accessed files outside the archive: {events[:20]}"
    assert appearance(around) == before, "the surroundings of the archive were changed"
    for path in (around / "archive").rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            # The planted metadata of version 3 describes the data outside, but contains none of it.
            assert _SECRET.encode() not in text, f"{path} has bytes from outside the archive"


def _go_through(around: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Plant links and files, start or rescan, and try ids, until there were enough."""
    archive = around / "archive"
    server: ServerProcess | None = None
    try:
        stretch = min(_STRETCH, rounds // 3 + 1)
        for start in range(0, rounds, stretch):
            if server and random.random() < 0.5:
                _end(server, random)
                server = None
            plant(archive, random)
            figures.count("rounds of planted links and files")
            if server:
                _rescan(server)
                figures.count("rescans")
            else:
                server = ServerProcess(archive, "--cache_max_bytes=8000000")
                figures.count("starts")
            asyncio.run(_try_ids(server.port, min(stretch, rounds - start), random, figures, around))
    finally:
        if server:
            _end(server, random)


def _end(server: ServerProcess, random: Random) -> None:
    """End a server, cleanly or by a crash, and check that it did not fail."""
    if random.random() < 0.3:
        server.kill()
    else:
        assert server.stop() == 0, f"the server did not stop cleanly: {server.lines[-20:]}"
    failures = [line for line in server.lines if "Traceback" in line or "a reason of ours" in line]
    assert not failures, f"the server failed: {failures}"


def missing() -> str:
    """Return why this machine cannot run the proof; empty if it can."""
    return "" if sys.platform == "linux" else "inotify exists only on Linux"


PROOF = Proof(
    name="containment",
    promise="Nothing outside the archive directory is read or written",
    attempt=attempt,
    unit="ids",
    short=100,
    long=100_000,
    batch=10_000,
    missing=missing,
    requirements="Linux",
)
