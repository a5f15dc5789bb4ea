"""Archives with damage, with foreign entries, written by the original, and read by it."""

import asyncio
import calendar
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import grpc
import pytest
import yaml

from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from tests.client import Client, connected, header, next_version, refused
from tests.locales import utf_8

WAIT_SECONDS = 20
SECRET = b"what lies outside of the archive"


def version_text(model_id: str, number: int, data: bytes, /, **changes: str | None) -> str:
    """Return the metadata of a version as the original writes it, with some fields changed, or left out if None."""
    fields: dict[str, str | None] = {
        "model_id": model_id,
        "version_number": str(number),
        "creation_timestamp": "2026-11-22T16:53:02.313162077Z",
        "data_hash": hash_of(data),
        "data_size": str(len(data)),
        "user_data": "{}",
        **changes,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)


def write_model(archive: Path, model_id: str) -> Path:
    """Write a model without versions, and return its directory."""
    directory = archive / model_id
    directory.mkdir(parents=True)
    (directory / f"{model_id}.yaml").write_text(f"model_id: {model_id}\nuser_data: {{}}\n", encoding="utf-8")
    return directory


def write_version(directory: Path, number: int, data: bytes, **changes: str | None) -> None:
    """Write a version of the model in a directory."""
    name = f"{directory.name}-v{number:06d}"
    (directory / f"{name}.data").write_bytes(data)
    (directory / f"{name}.yaml").write_text(version_text(directory.name, number, data, **changes), encoding="utf-8")


def sound_archive(place: Path) -> Path:
    """Write an archive with the model `m`, whose versions 1 to 3 are intact, and return its directory."""
    directory = write_model(place / "archive", "m")
    for number in (1, 2, 3):
        write_version(directory, number, b"data %d" % number)
    return place / "archive"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with the model `m`, whose versions 1 to 3 are intact, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return sound_archive(tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory next to the archive, with files that look like a model, which must neither be read nor changed."""
    directory = write_model(tmp_path / "outside", "m")
    (directory / "m.yaml").write_text(f"model_id: m\nuser_data: {{secret: {SECRET.decode()}}}\n", encoding="utf-8")
    write_version(directory, 2, SECRET, user_data=f"{{secret: {SECRET.decode()}}}")
    (directory / "mark").write_text("500\n", encoding="utf-8")
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def entries(archive: Path) -> set[Path]:
    return set(archive.rglob("*"))


def errors(caplog: pytest.LogCaptureFixture, number: int) -> int:
    """Return the number of errors that were logged about a version."""
    return sum(record.levelno >= logging.ERROR and vars(record).get("number") == number for record in caplog.records)


async def assert_damaged(client: Client, archive: Path, number: int = 2) -> None:
    """Ask for a version in both ways, and expect that it is reported as damaged, without a path."""
    for ask in (client.infos, client.data):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask("m", number)
        assert caught.value.code() == grpc.StatusCode.DATA_LOSS, caught.value.details()
        assert str(archive) not in (caught.value.details() or "")


# Damage. Each of these is done to version 2 of three.

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n"
    for before, after in zip("abcdefghij", "bcdefghijk", strict=True)
)
SOUND = version_text("m", 2, b"data 2")

PWNED = "pwned"
PYTHON_OBJECT = f"!!python/object/apply:os.mkdir [{PWNED}]"

DAMAGED_TEXTS: dict[str, bytes | str] = {
    "empty": "",
    "a comment": "# nothing\n",
    "null": "~\n",
    "a word": "word\n",
    "a list": "".join(f"- {line}\n" for line in SOUND.splitlines()),
    "cut": SOUND[:50],
    "not YAML": "{]\n" + SOUND,
    "a tab": "\t" + SOUND,
    "not UTF-8": SOUND.encode().replace(b"{}", b"{a: \xff}"),
    "NUL bytes alone": bytes(200),
    "a NUL byte": SOUND.encode().replace(b"{}", b"{a: \0}"),
    "an escaped lone surrogate": SOUND.replace("{}", '{a: "\\ud800"}'),
    "an encoded lone surrogate": SOUND.encode().replace(b"{}", b"{a: \xed\xa0\x80}"),
    "user_data that is a list": SOUND.replace("{}", "[a, b]"),
    "user_data that is a text": SOUND.replace("{}", "text"),
    "nested user_data": SOUND.replace("{}", "{a: {b: c}}"),
    "a list in user_data": SOUND.replace("{}", "{a: [b]}"),
    "a list as a key": SOUND.replace("{}", "{? [a] : b}"),
    "an alias": SOUND.replace("{}", "{a: &x b, c: *x}"),
    "billion laughs": BOMB + SOUND,
    "billion laughs in user_data": BOMB + SOUND.replace("{}", "{a: *k}"),
    "an alias of itself": SOUND.replace("{}", "&x {a: *x}"),
    "a merge": f"base: &x {{a: b}}\n{SOUND}".replace("{}", "\n  <<: *x"),
    "deep lists": SOUND.replace("{}", "[" * 100_000),
    "deep mappings": SOUND.replace("{}", "{a: " * 100_000),
    "deep from the start": "[" * 1_000_000,
    "a list of many": "- x\n" * 200_000,
    "a Python object": SOUND.replace("{}", f"{{a: {PYTHON_OBJECT}}}"),
    "a Python object as a whole": PYTHON_OBJECT,
    "another model": version_text("other", 2, b"data 2"),
    "another number": version_text("m", 1, b"data 2"),
    **{
        f"no {name}": version_text("m", 2, b"data 2", **{name: None})
        for name in yaml.safe_load(SOUND)
        if name != "user_data"
    },
    **{f"number {text}": version_text("m", 2, b"data 2", version_number=text) for text in ("-2", "2.0", "two", "[2]")},
    **{f"size {text}": version_text("m", 2, b"data 2", data_size=text) for text in ("5", "7", "-6", "six", "6.0", "~")},
    **{f"hash {text}": version_text("m", 2, b"data 2", data_hash=text) for text in ("AAAA", "~", "x" * 44, "'é'")},
    **{
        f"time {text}": version_text("m", 2, b"data 2", creation_timestamp=text)
        for text in ("~", "today", "2026-11-22", "1633119005", "2026-13-22T00:00:00Z", "2026-11-22T16:53:02")
    },
}

YAML, DATA = "m-v000002.yaml", "m-v000002.data"

Plant = Callable[[Path, Path], object]
"""Plants something at a path; the second path is that of the directory outside."""


def link_outside(path: Path, outside: Path) -> None:
    """Link to a file outside that would be a valid version if the link were followed."""
    path.symlink_to(outside / path.name)
    if path.name == YAML:
        path.with_name(DATA).write_bytes(SECRET)
    if path.name == DATA:
        path.with_name(YAML).write_text(version_text("m", 2, SECRET), encoding="utf-8")


def huge_file(path: Path, _: Path) -> None:
    path.write_text(SOUND, encoding="utf-8")
    os.truncate(path, 2**40)


OTHER_THINGS: dict[str, Plant] = {
    "a link outside": link_outside,
    "a link to itself": lambda path, _: path.symlink_to(path.name),
    "a link to nothing": lambda path, _: path.symlink_to("nothing"),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a directory": lambda path, _: path.mkdir(),
    "a socket": lambda path, _: os.mknod(path, stat.S_IFSOCK | 0o640),
}


def write(text: bytes | str) -> Plant:
    return lambda path, _: path.write_bytes(text if isinstance(text, bytes) else text.encode())


DAMAGES: list[tuple[str, str, Plant]] = [
    ("nothing", DATA, lambda path, _: None),
    ("shorter", DATA, write("data")),
    ("longer", DATA, write("data 2 and more")),
    ("empty", DATA, write("")),
    ("huge", YAML, huge_file),
    *[(name, YAML, write(text)) for name, text in DAMAGED_TEXTS.items()],
    *[(what, name, plant) for what, plant in OTHER_THINGS.items() for name in (YAML, DATA)],
]


@pytest.mark.parametrize(
    ("name", "plant"), [pytest.param(name, plant, id=f"{what} as {name[-4:]}") for what, name, plant in DAMAGES]
)
async def test_damaged_version_is_reported_and_logged_once_and_the_rest_is_served(
    name: str, plant: Plant, archive: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (archive / "m" / name).unlink()
    plant(archive / "m" / name, outside)
    before = content(outside)
    async with asyncio.timeout(WAIT_SECONDS), serving(archive) as server, connected(server.port) as client:
        for _ in range(2):
            await assert_damaged(client, archive)
            assert await client.numbers("m") == [1, 3]
            assert [info.version_number for info in (await client.infos("m", -2, -1)).version_infos] == [1, 3]
            with refused(grpc.StatusCode.NOT_FOUND):
                await client.data("m", -3)
            with refused(grpc.StatusCode.DATA_LOSS):
                await client.infos("m", 1, 2)
            assert [await client.data("m", number) for number in (1, 3)] == [b"data 1", b"data 3"]
        assert errors(caplog, 2) == 1
        assert (await client.store("m", b"next")).version_number == 4
    assert content(outside) == before
    assert PWNED not in os.listdir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_metadata_without_permission_to_read_is_damage(archive: Path) -> None:
    (archive / "m" / YAML).chmod(0)
    async with serving(archive) as server, connected(server.port) as client:
        await assert_damaged(client, archive)
        assert await client.numbers("m") == [1, 3]


async def test_damaged_version_is_not_counted_from_the_last_even_before_it_was_requested(archive: Path) -> None:
    for number in (2, 3):
        (archive / f"m/m-v{number:06d}.yaml").write_text("", encoding="utf-8")
    async with serving(archive) as server, connected(server.port) as client:
        watch = client.watching("m")
        assert (await next_version(watch)).version_number == 1
        assert await client.data("m", -1) == b"data 1"
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.data("m", -2)
        assert (await client.publish("m", b"")).version_number == 4
        assert (await next_version(watch)).version_number == 4


async def test_data_without_metadata_is_not_a_version(archive: Path) -> None:
    (archive / "m/m-v000003.yaml").unlink()
    (archive / "m/m-v000009.data").write_bytes(b"data")
    async with serving(archive) as server, connected(server.port) as client:
        assert await client.numbers("m") == [1, 2]
        for number in (3, 9):
            with refused(grpc.StatusCode.NOT_FOUND):
                await client.data("m", number)
        info = await client.store("m", b"new")
        assert await client.data("m", info.version_number) == b"new"


async def test_retrieval_of_bytes_that_do_not_match_their_hash_never_ends_with_ok(
    archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    big = bytes(5_000_000)
    write_version(archive / "m", 2, big)
    async with serving(archive) as server, connected(server.port) as client:
        assert await client.numbers("m") == [1, 2, 3]
        assert await client.data("m", 2) == big
        file = archive / "m" / DATA
        status = file.stat()
        with file.open("r+b") as opened:
            opened.seek(4_999_999)
            opened.write(b"x")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with refused(grpc.StatusCode.DATA_LOSS):
            await client.data("m", 2)
        await assert_damaged(client, archive)
        assert await client.numbers("m") == [1, 3]
        assert await client.data("m", -2) == b"data 1"
    assert errors(caplog, 2) == 1


@pytest.mark.parametrize("what", OTHER_THINGS)
async def test_damage_that_happens_while_the_server_runs_is_reported(what: str, archive: Path, outside: Path) -> None:
    write_version(archive / "m", 2, SECRET)
    async with asyncio.timeout(WAIT_SECONDS), serving(archive) as server, connected(server.port) as client:
        assert await client.data("m", 2) == SECRET
        (archive / "m" / DATA).unlink()
        OTHER_THINGS[what](archive / "m" / DATA, outside)
        with refused(grpc.StatusCode.DATA_LOSS):
            await client.data("m", 2)
        await assert_damaged(client, archive)
        assert await client.numbers("m") == [1, 3]


# Models.


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda path, _: None, id="nothing"),
        *[
            pytest.param(write(text), id=f"metadata: {name}")
            for name, text in {
                **{name: text for name, text in DAMAGED_TEXTS.items() if name in ("empty", "cut", "a NUL byte")},
                "another model": "model_id: other\nuser_data: {a: b}\n",
                "a Python object": f"model_id: m\nuser_data: {{a: {PYTHON_OBJECT}}}\n",
                "billion laughs": BOMB + "model_id: m\nuser_data: {a: *k}\n",
            }.items()
        ],
        *[pytest.param(plant, id=name) for name, plant in OTHER_THINGS.items()],
    ],
)
async def test_versions_of_a_model_with_damaged_metadata_are_served(plant: Plant, archive: Path, outside: Path) -> None:
    (archive / "m/m.yaml").unlink()
    plant(archive / "m/m.yaml", outside)
    before = content(outside)
    async with asyncio.timeout(WAIT_SECONDS), serving(archive) as server, connected(server.port) as client:
        assert [(info.model_id, dict(info.user_data)) for info in (await client.models()).model_infos] == [("m", {})]
        assert [await client.data("m", number) for number in (1, 2, 3)] == [b"data 1", b"data 2", b"data 3"]
    assert content(outside) == before
    assert PWNED not in os.listdir()


@pytest.mark.parametrize("what", [what for what in OTHER_THINGS if what != "a directory"])
async def test_damaged_metadata_of_a_model_is_repaired_by_an_update(what: str, archive: Path, outside: Path) -> None:
    (archive / "m/m.yaml").unlink()
    OTHER_THINGS[what](archive / "m/m.yaml", outside)
    before = content(outside)
    for _ in range(2):
        async with serving(archive) as server, connected(server.port) as client:
            await client.create_model("m", new="user_data")
            assert dict((await client.models("m")).model_infos[0].user_data) == {"new": "user_data"}
    assert content(outside) == before


async def test_link_to_a_model_directory_is_not_followed(archive: Path, outside: Path) -> None:
    (archive / "linked").symlink_to(outside)
    before = content(outside)
    async with serving(archive) as server, connected(server.port) as client:
        assert [info.model_id for info in (await client.models()).model_infos] == ["m"]
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.infos("linked")
        with pytest.raises(grpc.aio.AioRpcError):
            await client.create_model("linked")
        shutil.move(archive / "m", archive.parent / "aside")
        (archive / "m").symlink_to(outside)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.data("m", 2)
        await server.refresh()
        with refused(grpc.StatusCode.NOT_FOUND):
            await client.data("m", 2)
    assert content(outside) == before


async def test_deleting_a_model_follows_no_link(archive: Path, outside: Path) -> None:
    (archive / "m/link to a directory").symlink_to(outside)
    (archive / "m/m-v000004.data").symlink_to(outside / DATA)
    before = content(outside)
    async with serving(archive) as server, connected(server.port) as client:
        await client.delete_model("m")
    assert content(outside) == before
    assert not (archive / "m").exists()


@pytest.mark.parametrize(
    "plant",
    [
        *[pytest.param(write(text), id=text or "empty") for text in ("", "x", "-7\n", "7.5\n", f"{2**32}\n", "9" * 99)],
        pytest.param(lambda path, outside: path.symlink_to(outside / "mark"), id="a link outside"),
        pytest.param(OTHER_THINGS["a link to itself"], id="a link to itself"),
        pytest.param(OTHER_THINGS["a FIFO"], id="a FIFO"),
    ],
)
async def test_numbers_continue_after_the_last_one_when_the_high_water_mark_is_damaged(
    plant: Plant, archive: Path, outside: Path
) -> None:
    plant(archive / "m/.high_water_mark", outside)
    before = content(outside)
    for number in (4, 5):
        async with asyncio.timeout(WAIT_SECONDS), serving(archive) as server, connected(server.port) as client:
            assert (await client.publish("m", b"")).version_number == number
    assert content(outside) == before


# Foreign entries.

FOREIGN_FILES = [
    *("m.yaml", "README.md", ".DS_Store", "m/m.yaml.bak", "m/m.yaml~", "m/.m.yaml.swp", "m/#m.yaml#", "m/4913"),
    *("m/m-v000001.yaml.bak", "m/m-v000004.yaml~", "m/.m-v000004.yaml.swp", "m/m-v000004.yml", "m/M-v000004.yaml"),
    *("m/m-v000004.YAML", "m/m-v000004.yaml.tmp123", "m/other-v000004.yaml", "m/other.yaml", "lost+found/x"),
    *("m.bak/m.yaml", "m.bak/m-v000001.yaml", "m.bak/m-v000001.data", "empty model", ".hidden/.hidden.yaml"),
    # Names that are not in the layout.
    *("m/m-v1.yaml", "m/m-v00004.yaml", "m/m-v0000004.yaml", "m/m-v000000.yaml", "m/m-v-00004.yaml"),
    *("m/m-v4294967296.yaml", "m/m-v٠٠٠٠٠٤.yaml", "m/m-v+00004.yaml", "m/m-v00000A.yaml", "m/m-v000004.yaml "),
]


async def test_foreign_entries_are_ignored_and_left_alone(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in FOREIGN_FILES:
        path = archive / utf_8(name)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(
                version_text("m", 4, b"") if "-v" in name else "model_id: m\nuser_data: {foreign: x}\n",
                encoding="utf-8",
            )
    (archive / "m/directory").mkdir()
    (archive / "m/m-v000004.data.d").mkdir()
    os.mkfifo(archive / "fifo")
    os.mkfifo(archive / "m/fifo")
    for bad in (b"bad\xff", b"a\nb", b"m/m-v000004\xff.yaml"):
        try:
            os.mkdir(os.fsencode(archive) + b"/" + bad)
        except OSError:
            pytest.skip("this file system takes no such names")
    before = entries(archive)
    async with asyncio.timeout(WAIT_SECONDS), serving(archive) as server, connected(server.port) as client:
        await server.refresh()
        assert [(info.model_id, dict(info.user_data)) for info in (await client.models()).model_infos] == [("m", {})]
        assert await client.numbers("m") == [1, 2, 3]
        assert (await client.store("m", b"next")).version_number == 4
        assert await client.data("m", -1) == b"next"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert before <= entries(archive)


async def test_versions_are_ordered_by_number_when_numbers_outgrow_six_digits(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m")
    for number in (1_000_000, 999_999, 2, 10_000_000):
        write_version(directory, number, b"%d" % number)
    async with serving(tmp_path) as server, connected(server.port) as client:
        assert await client.numbers("m") == [2, 999_999, 1_000_000, 10_000_000]
        assert [await client.data("m", -n) for n in (1, 2, 3)] == [b"10000000", b"1000000", b"999999"]
        assert (await client.store("m", b"")).version_number == 10_000_001
    assert (directory / "m-v10000001.yaml").is_file()


# Archives that others wrote.


async def test_version_that_is_transient_by_its_metadata_is_served_as_not_archived(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m")
    for number, transient in enumerate(("true", "false", "yes"), 1):
        write_version(directory, number, b"data", transient=transient)
    async with serving(tmp_path) as server, connected(server.port) as client:
        assert [info.archived for info in (await client.infos("m")).version_infos] == [False, True, False]
        assert [await client.data("m", number) for number in (1, 2, 3)] == [b"data"] * 3


async def test_unknown_fields_of_any_shape_are_ignored(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m")
    for number, text in enumerate(("text", "{a: b}", "[a, b]", "{a: {b: [c]}}"), 1):
        write_version(directory, number, b"data", unknown=text)
    async with serving(tmp_path) as server, connected(server.port) as client:
        assert await client.numbers("m") == [1, 2, 3, 4]


UNQUOTED = ["yes", "1e3", "~", "2021-10-01", "null", "0x1F", "012", "1_000", ".inf", "12:30:45", "=", "é世界"]


async def test_unquoted_user_data_stays_the_text_that_was_written(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m")
    expected = {f"key {number}": text for number, text in enumerate(UNQUOTED)} | {"1e3": "no", "empty": "", "last": "z"}
    lines = "".join(f"\n  {name}: {text}" for name, text in expected.items())
    (directory / "m.yaml").write_text(f"model_id: m\nuser_data:{lines}\n", encoding="utf-8")
    write_version(directory, 1, b"", user_data=f"{lines}\n  last: first\n  last: z")
    async with serving(tmp_path) as server, connected(server.port) as client:
        assert dict((await client.models("m")).model_infos[0].user_data) == expected
        assert dict((await client.infos("m", 1)).version_infos[0].user_data) == expected


async def test_timestamps_keep_their_nanoseconds(tmp_path: Path) -> None:
    moment = calendar.timegm((2026, 11, 22, 16, 53, 2)) * 10**9
    times = {"2026-11-22T16:53:02Z": moment, "0001-01-01T00:00:00Z": 0, "1970-01-01T00:00:00.000000001Z": 1}
    times |= {f"2026-11-22T16:53:02.{'123456789'[:n]}Z": moment + int(f"{'123456789'[:n]:<09}") for n in range(1, 10)}
    times |= {
        "2026-11-22T18:53:02.000000007+02:00": moment + 7,
        "2026-11-22T11:23:02.313162077-05:30": moment + 313162077,
    }
    times |= {'"2026-11-22T16:53:02.5Z"': moment + 500_000_000, "2026-11-22T16:53:02+00:00": moment}
    directory = write_model(tmp_path, "m")
    for number, text in enumerate(times, 1):
        write_version(directory, number, b"", creation_timestamp=text)
    async with serving(tmp_path) as server, connected(server.port) as client:
        infos = (await client.infos("m")).version_infos
        assert [info.creation_timestamp for info in infos] == list(times.values())


ORIGINAL = """\
== empty_model/empty_model.yaml
model_id: empty_model
user_data: {}
== my_model/my_model.yaml
model_id: my_model
user_data:
  type: my_model_type
== my_model/my_model-v000001.data
chunk_1chunk_2
== my_model/my_model-v000001.yaml
model_id: my_model
version_number: 1
creation_timestamp: 2026-11-22T16:53:02.313162077Z
data_hash: jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=
data_size: 14
user_data: {}
== my_model/my_model-v000002.data
chunk_1chunk_2
== my_model/my_model-v000002.yaml
model_id: my_model
version_number: 2
creation_timestamp: 2026-11-22T16:53:02.414425992Z
data_hash: jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=
data_size: 14
user_data:
  reward: "-12.5"
  step: "1000"
== my_model/my_model-v000004.data
v4data
== my_model/my_model-v000004.yaml
model_id: my_model
version_number: 4
creation_timestamp: 2026-11-22T16:53:02.604011777Z
data_hash: qj5glQlIQ84UMetCrgBJW3rpfGrm/LL+Ku4uXpUqAHo=
data_size: 6
user_data:
  when: "2021-10-01"
  x: "0x1F"
== my_other_model/my_other_model.yaml
model_id: my_other_model
user_data:
  bool: "yes"
  empty: ""
  note: |-
    multi
    line: yes "quoted" é 世界
  "null": "~"
  num: "1e3"
  type: my_model_type
== my_other_model/my_other_model-v000001.data
other
== my_other_model/my_other_model-v000001.yaml
model_id: my_other_model
version_number: 1
creation_timestamp: 2026-11-22T16:53:02.705936144Z
data_hash: 2SmKENGwc1g33EvYXaxkGw887yekfl1TpU8vP1svz/o=
data_size: 5
user_data: {}
"""


async def test_archive_of_the_original_is_served_unchanged_and_its_numbers_continue(tmp_path: Path) -> None:
    files = dict(re.findall(r"^== (.+)\n((?:(?!== ).*\n)+)", ORIGINAL, re.MULTILINE))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.removesuffix("\n") if name.endswith(".data") else text, encoding="utf-8")
    before = {name: content(tmp_path / name) for name in os.listdir(tmp_path)}
    second_ns = calendar.timegm((2026, 11, 22, 16, 53, 2)) * 10**9
    async with serving(tmp_path) as server, connected(server.port) as client:
        reply = await client.models()
        assert {info.model_id: dict(info.user_data) for info in reply.model_infos} == {
            "empty_model": {},
            "my_model": {"type": "my_model_type"},
            "my_other_model": {
                "bool": "yes",
                "empty": "",
                "note": 'multi\nline: yes "quoted" é 世界',
                "null": "~",
                "num": "1e3",
                "type": "my_model_type",
            },
        }
        versions = [
            *(await client.infos("my_model")).version_infos,
            *(await client.infos("my_other_model")).version_infos,
        ]
        chunks, fourth, other = b"chunk_1chunk_2", b"v4data", b"other"
        assert [
            (info.model_id, info.version_number, info.creation_timestamp - second_ns, dict(info.user_data))
            for info in versions
        ] == [
            ("my_model", 1, 313162077, {}),
            ("my_model", 2, 414425992, {"reward": "-12.5", "step": "1000"}),
            ("my_model", 4, 604011777, {"when": "2021-10-01", "x": "0x1F"}),
            ("my_other_model", 1, 705936144, {}),
        ]
        for info, data in zip(versions, (chunks, chunks, fourth, other), strict=True):
            assert await client.data(info.model_id, info.version_number) == data
            assert (info.data_hash, info.data_size, info.archived) == (hash_of(data), len(data), True)
        for model_id, number in (("empty_model", 1), ("my_model", 5), ("my_other_model", 2)):
            assert (await client.store(model_id, b"")).version_number == number
    for name, files in before.items():
        assert files.items() <= content(tmp_path / name).items(), "what the original wrote stays as it is"


# Archives that we wrote.

TEXTS = (
    "",
    "yes",
    "1e3",
    "~",
    "2021-10-01",
    "a: b",
    ' "quoted" ',
    "two\nlines\n",
    "\0\x01\x7f\x85\u2028\ufeff",
    "é 世界 🙂",
    "#",
)


async def test_original_can_read_written_archives(tmp_path: Path) -> None:
    archive, user_data = tmp_path / "archive", {f"{text}{number}": text for number, text in enumerate(TEXTS)}
    taken_for_a_version = re.compile("([a-zA-Z][a-zA-Z0-9-_]*)-v([0-9]+).yaml")
    umask = os.umask(0)
    try:
        async with serving(archive) as server, connected(server.port) as client:
            for model_id in ("m", "123", "null", "2021-10-01", "yes"):
                await client.create_model(model_id, **user_data)
                call = client.uploading()
                await call.write(header(model_id, 5, archived=True).SerializeToString())
                info = await client.store(
                    model_id, b"data", user_data=user_data, creation_timestamp=1_633_119_005_107_454_620
                )
                call.cancel()
                directory, name = archive / model_id, f"{model_id}-v000001"
                assert {path for path in os.listdir(directory) if taken_for_a_version.search(path)} <= {f"{name}.yaml"}
                assert yaml.safe_load((directory / f"{model_id}.yaml").read_text(encoding="utf-8")) == {
                    "model_id": model_id,
                    "user_data": user_data,
                }
                text = (directory / f"{name}.yaml").read_text(encoding="utf-8")
                fields = yaml.safe_load(text)
                assert isinstance(fields.pop("creation_timestamp"), datetime)
                assert "creation_timestamp: 2021-10-01T20:10:05.107454620Z\n" in text
                assert fields == {
                    "model_id": model_id,
                    "version_number": 1,
                    "data_hash": info.data_hash,
                    "data_size": 4,
                    "user_data": user_data,
                }
                assert (directory / f"{name}.data").read_bytes() == b"data"
    finally:
        os.umask(umask)
    for path in [archive, *archive.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
    assert sorted(path.name for path in archive.iterdir() if path.is_dir()) == ["123", "2021-10-01", "m", "null", "yes"]
