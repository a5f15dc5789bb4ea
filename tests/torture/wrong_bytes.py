"""Wrong bytes are never served as valid: an archive is damaged in every way while its server runs, and between runs.

The expected result depends on the damage:

- the data of a version: each retrieval is DATA_LOSS, its last bytes are never sent, and all other versions are served;
  if the damage happens while the version is being sent, the bytes that came with OK are those that were stored;
- the fields of its metadata that describe its data, after the server has read them: DATA_LOSS each time, too;
- anything in its metadata: no hash covers `user_data` and the time, so a change there may go unnoticed; but the bytes
  that come with OK are those that were stored, and the reported hash is theirs.

A replacement may have the same size and the same times, as a careless restore leaves it.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import grpc
import grpc.aio

from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected
from tests.torture.proof import Figures, Proof

SETTINGS = Settings(cache_max_bytes=64 * MIB, grace_seconds=0, sent_version_chunk_size=128 * 1024)
MODELS = ("alpha", "beta")
SIZES = (1, 100, 100, 70_000, 70_000, 3_000_000)
"""Sizes of each model's versions: some equal, so that versions can be exchanged; some of many chunks."""

SLOW_BYTES = 8_000_000
"""More than a server, two sockets and a client buffer: the rest is read when the client continues to read."""

RESTART_SHARE = 0.15
SLOW_SHARE = 0.15


@dataclass(frozen=True)
class Version:
    """An acknowledged version.

    Attributes:
        model_id: Its model.
        number: Its number.
        data: Its bytes.
        directory: The directory of its files.
        metadata: The text of its metadata.
    """

    model_id: str
    number: int
    data: bytes
    directory: Path
    metadata: bytes = b""

    def __str__(self) -> str:
        return f"version {self.number} of {self.model_id} ({len(self.data)} bytes)"

    @property
    def data_path(self) -> Path:
        return self.directory / f"{self.model_id}-v{self.number:06d}.data"

    @property
    def metadata_path(self) -> Path:
        return self.directory / f"{self.model_id}-v{self.number:06d}.yaml"


# Functions that damage a file. Each returns its new bytes.


def flip(content: bytes, random: Random) -> bytes:
    """Change one bit."""
    return flip_at(content, random.randrange(len(content)), random)


def flip_at(content: bytes, position: int, random: Random) -> bytes:
    """Change one bit of a byte."""
    changed = bytearray(content)
    changed[position] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    """Remove bytes from the end."""
    return content[: random.randrange(len(content))]


def extend(content: bytes, random: Random) -> bytes:
    """Add bytes at the end."""
    return content + random.randbytes(random.randrange(1, 5000))


def replace_all(content: bytes, random: Random) -> bytes:
    """Replace all bytes by others, with the same size."""
    return flip(random.randbytes(len(content)), random) if len(content) > 1 else flip(content, random)


def blank_page(content: bytes, random: Random) -> bytes:
    """Replace a page of the file by zeros, as a file system that lost it."""
    start = random.randrange(len(content)) // 4096 * 4096
    page = content[start : start + 4096]
    blank = bytes(len(page))
    return content[:start] + (blank if page != blank else b"\1" + blank[1:]) + content[start + 4096 :]


CHANGES: Sequence[Callable[[bytes, Random], bytes]] = (flip, flip, cut, extend, replace_all, blank_page)


def write_in_place(path: Path, content: bytes, keep_times: bool) -> None:
    """Overwrite a file in place, as an editor or a disk does."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_file(path: Path, content: bytes, keep_times: bool) -> None:
    """Replace a file by another file, as a restore does."""
    before = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(content)
    if keep_times:
        os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)


def change(path: Path, content: bytes, random: Random) -> str:
    """Change the content of a file in one of the ways; return which."""
    write = random.choice((write_in_place, replace_file))
    keep_times = random.random() < 0.6
    write(path, content, keep_times)
    return f"{write.__name__}{' with its times' if keep_times else ''}"


def exchange(one: Path, other: Path, keep_times: bool) -> None:
    """Exchange two files."""
    contents, times = (one.read_bytes(), other.read_bytes()), (one.stat(), other.stat())
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    assert (other.read_bytes(), one.read_bytes()) == contents
    if keep_times:
        for path, status in zip((one, other), times, strict=True):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_in_field(text: bytes, random: Random) -> bytes:
    """Change one bit of the value of a metadata field that describes the data."""
    field = random.choice((b"model_id: ", b"version_number: ", b"data_hash: ", b"data_size: "))
    start = text.index(field) + len(field)
    return flip_at(text, random.randrange(start, text.index(b"\n", start)), random)


@dataclass
class Damage:
    """A case of damage.

    Attributes:
        what: Its description.
        lost: Versions that are certainly damaged.
        unsure: Versions with a change that no hash covers.
    """

    what: str
    lost: Sequence[Version] = ()
    unsure: Sequence[Version] = ()


# The proof.


def expect_data_loss(error: grpc.aio.AioRpcError, version: Version, what: str) -> None:
    """Expect that a retrieval was refused because the version is damaged."""
    assert error.code() == grpc.StatusCode.DATA_LOSS, f"{version}: {what}: {error.code().name}: {error.details()}"


class Damaging:
    """Damages and repairs an archive repeatedly, and checks the replies of its server.

    Args:
        place: An empty directory.
        random: Chooses what is damaged, how, and when.
        figures: What was counted.
    """

    def __init__(self, place: Path, random: Random, figures: Figures) -> None:
        self.archive = place / "archive"
        self.random = random
        self.figures = figures
        self.versions: list[Version] = []
        self.slow: list[Version] = []
        self.server: Server
        self.client: Client

    async def run(self, rounds: int) -> None:
        """Damage the archive this many times."""
        self.figures.count("wrong bytes served as valid", 0)
        async with self._serving():
            await self._create()
        left = rounds
        while left:
            damage = self._damage(self._victims())
            async with self._serving():
                await self._expect(damage)
                await self._repair(damage)
                left -= 1
                while left and self.random.random() > RESTART_SHARE:
                    await self._damage_while_it_runs()
                    left -= 1

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with serving(self.archive, SETTINGS) as self.server, connected(self.server.port) as self.client:
            yield

    async def _create(self) -> None:
        """Store the versions that will be damaged."""
        for model_id in MODELS:
            await self.client.create_model(model_id)
            for size_bytes in SIZES:
                self.versions.append(await self._store(model_id, self.random.randbytes(size_bytes)))
            self.slow.append(await self._store(model_id, self.random.randbytes(SLOW_BYTES)))

    async def _store(self, model_id: str, data: bytes) -> Version:
        info = await self.client.store(model_id, data, user_data={"step": "1", "note": "one two"})
        version = Version(model_id, info.version_number, data, self.archive / model_id)
        return replace(version, metadata=version.metadata_path.read_bytes())

    async def _damage_while_it_runs(self) -> None:
        """Damage versions that were read before, were not, or are being read; check the replies; repair the archive."""
        if self.random.random() < SLOW_SHARE:
            damage = await self._damage_while_it_is_sent()
        else:
            victims = self._victims()
            was_read = self.random.random() < 0.6
            if was_read:
                for version in victims:
                    await self._expect_right(version, "before it is damaged")
            damage = self._damage(victims)
            damage.what += ", after it was read" if was_read else ", before it was read"
            if any(version.metadata_path.name in damage.what for version in victims):
                await self.server.refresh()  # until then, the server does not read its metadata again
        await self._expect(damage)
        await self._repair(damage)

    def _victims(self) -> list[Version]:
        return self.random.sample(self.versions, 2)

    def _damage(self, victims: Sequence[Version]) -> Damage:
        """Damage files of one or both of two versions."""
        one, other = victims
        self.figures.count("cases of damage")
        kind = self.random.choices(("data", "exchange", "field", "metadata"), (5, 3, 2, 2))[0]
        if kind == "exchange":
            return self._exchange(one, other)
        path = one.data_path if kind == "data" else one.metadata_path
        changing = {"data": self.random.choice(CHANGES), "field": flip_in_field, "metadata": flip}[kind]
        how = change(path, changing(path.read_bytes(), self.random), self.random)
        what = f"{changing.__name__} in {path.name}, {how}"
        return Damage(what, unsure=[one]) if kind == "metadata" else Damage(what, lost=[one])

    def _exchange(self, one: Version, other: Version) -> Damage:
        """Exchange the data, the metadata, or both of two versions."""
        if self.random.random() < 0.5:
            # Of one size, so that the size does not reveal the exchange.
            alike = [version for version in self.versions if len(version.data) == len(one.data) and version != one]
            other = self.random.choice(alike)
        keep_times = self.random.random() < 0.6
        names = self.random.choice((["data_path"], ["metadata_path"], ["data_path", "metadata_path"]))
        for name in names:
            exchange(getattr(one, name), getattr(other, name), keep_times)
        paths = " and ".join(getattr(one, name).name for name in names)
        return Damage(f"exchanged {paths} with {other}{' with their times' if keep_times else ''}", lost=[one, other])

    async def _damage_while_it_is_sent(self) -> Damage:
        """Damage the end of a version while a slow client has received only its beginning."""
        version = self.random.choice(self.slow)
        was_read = self.random.random() < 0.6
        if was_read:
            await self._expect_right(version, "before it is damaged")
        request = m.RetrieveVersionDataRequest(model_id=version.model_id, version_number=version.number)
        messages = aiter(self.client.streamed("RetrieveVersionData", request))
        received = m.RetrieveVersionDataReplyChunk.FromString(await anext(messages)).data_chunk
        content = flip_at(version.data, self.random.randrange(SLOW_BYTES * 4 // 5, SLOW_BYTES), self.random)
        how = change(version.data_path, self.random.choice((content, content[:-1], content + b"x")), self.random)
        self.figures.count("cases of damage")
        damage = Damage(f"{how}, while it was sent, {'read' if was_read else 'not read'} before", lost=[version])
        try:
            async for message in messages:
                received += m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk
        except grpc.aio.AioRpcError as error:
            expect_data_loss(error, version, damage.what)
            assert len(received) < SLOW_BYTES, f"{version}: {damage.what}: all of it was sent before DATA_LOSS"
            self.figures.count("retrievals in progress that ended with DATA_LOSS")
        else:
            assert received == version.data, f"{version}: {damage.what}: wrong bytes with OK"
            self.figures.count("retrievals in progress that were unaffected")
        return damage

    async def _expect(self, damage: Damage) -> None:
        """Compare what the server serves with what it must serve."""
        for version in damage.lost:
            for _ in range(2):
                await self._expect_loss(version, damage.what)
        for version in damage.unsure:
            await self._expect_right_or_loss(version, damage.what)
        others = [version for version in self.versions if version not in [*damage.lost, *damage.unsure]]
        for version in self.random.sample(others, 3):
            await self._expect_right(version, f"while another one is damaged by {damage.what}")

    async def _expect_loss(self, version: Version, what: str) -> None:
        """Expect DATA_LOSS before the last bytes, and that the version is not listed any more."""
        received = 0
        request = m.RetrieveVersionDataRequest(model_id=version.model_id, version_number=version.number)
        try:
            async for message in self.client.streamed("RetrieveVersionData", request):
                received += len(m.RetrieveVersionDataReplyChunk.FromString(message).data_chunk)
        except grpc.aio.AioRpcError as error:
            expect_data_loss(error, version, what)
        else:
            raise AssertionError(f"{version}: {what}: it was served with OK")
        assert received < len(version.data), f"{version}: {what}: all of it was sent before DATA_LOSS"
        assert version.number not in await self.client.numbers(version.model_id), f"{version}: {what}: it is listed"
        self.figures.count("retrievals refused with DATA_LOSS")

    async def _expect_right_or_loss(self, version: Version, what: str) -> None:
        """Expect DATA_LOSS, or the stored bytes with their hash."""
        try:
            [info] = (await self.client.infos(version.model_id, version.number)).version_infos
            data = await self.client.data(version.model_id, version.number)
        except grpc.aio.AioRpcError as error:
            expect_data_loss(error, version, what)
            self.figures.count("retrievals refused with DATA_LOSS")
            return
        assert data == version.data, f"{version}: {what}: wrong bytes with OK"
        assert info.data_hash == hash_of(data), f"{version}: {what}: its info says {info.data_hash}"
        self.figures.count("changes of user_data or the time")

    async def _expect_right(self, version: Version, when: str) -> None:
        """Expect the bytes that were stored."""
        try:
            data = await self.client.data(version.model_id, version.number)
        except grpc.aio.AioRpcError as error:
            raise AssertionError(f"{version}, {when}: {error.code().name}: {error.details()}") from error
        assert data == version.data, f"{version}, {when}: wrong bytes with OK"
        self.figures.count("versions served intact")

    async def _repair(self, damage: Damage) -> None:
        """Restore the files; the server serves the versions again after it rescanned the archive."""
        for version in [*damage.lost, *damage.unsure]:
            replace_file(version.data_path, version.data, keep_times=False)
            replace_file(version.metadata_path, version.metadata, keep_times=False)
        await self.server.refresh()
        for version in [*damage.lost, *damage.unsure]:
            await self._expect_right(version, f"repaired after {damage.what}")


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Damage the archive this many times."""
    asyncio.run(Damaging(place, random, figures).run(rounds))


PROOF = Proof(
    name="wrong_bytes",
    promise="Wrong bytes are never served as valid, whatever changes in the archive, at any time",
    attempt=attempt,
    unit="cases of damage",
    short=12,
    long=1000,
    batch=100,
)
