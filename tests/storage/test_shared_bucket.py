"""Archives of several servers on one bucket: what one does the others see, and what a gone one sent does no harm."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest

from cogment_model_registry.errors import DataLossError, NotFoundError, UnavailableError
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.testing.archive import remove
from cogment_model_registry.testing.bytes import describe, keep, read, read_chunks, write_pieces
from tests.storage.faulty_objects import gone, is_record, names_below, once
from tests.storage.shared_servers import Server
from tests.waiting import eventually

LARGE = bytes(range(256)) * (20 * MIB // 256)


async def recreate(server: Server, data: bytes = b"other") -> VersionInfo:
    """Delete the model ``m`` and create it again with a version 1 that has other bytes, but the same time."""
    await remove(server.archive, "m")
    await server.archive.write_model(ModelInfo("m"))
    info = describe("m", 1, data, True)
    await keep(server.archive, info, data)
    return info


async def numbers_of(server: Server) -> Sequence[int]:
    """Return the numbers of versions of the model ``m``."""
    return next(each.version_numbers for each in await server.archive.scan() if each.info.model_id == "m")


async def locked() -> None:
    """Say that nobody else changes the model."""


async def test_what_one_server_commits_the_other_reads_at_once(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, LARGE, True, note="yes")
    await keep(second.archive, info, LARGE)
    assert await first.archive.read_version_infos("m", [1, 2]) == [info, None]
    assert await read(first.archive, info) == LARGE
    await first.archive.write_model(ModelInfo("m", {"a": "b"}))
    await keep(first.archive, describe("m", 2, b"data", True), b"data")
    [contents] = await second.archive.scan()
    assert (contents.info, list(contents.version_numbers)) == (ModelInfo("m", {"a": "b"}), [1, 2])


async def test_what_one_server_removes_the_other_does_not_find(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await keep(first.archive, info, b"data")
    assert await read(second.archive, info) == b"data"
    await first.archive.remove_version(info)
    assert await second.archive.read_version_infos("m", [1]) == [None]
    with pytest.raises(NotFoundError):
        await read(second.archive, info)
    assert await gone(first.objects, layout.DATA, layout.HINTS, layout.VERSIONS)
    await second.archive.remove_version(info)
    await remove(second.archive, "m")
    with pytest.raises(NotFoundError):
        await first.archive.open_upload("m", 4)
    assert await first.archive.scan() == []


async def test_a_model_that_another_server_created_again_is_not_mixed_up(pair: tuple[Server, Server]) -> None:
    first, second = pair
    old = describe("m", 1, b"older", True)
    await keep(second.archive, old, b"older")
    assert await read(second.archive, old) == b"older"
    new = await recreate(first)
    assert await read(second.archive, new) == b"other"
    with pytest.raises((NotFoundError, DataLossError)):
        await read(second.archive, old)
    newer = replace(new, created_ns=new.created_ns + 1)
    await second.archive.remove_version(newer)  # of a life that is over
    with pytest.raises(NotFoundError):
        await second.archive.open_version(newer)
    assert await read(first.archive, new) == b"other"


async def test_a_reader_gets_no_bytes_of_a_model_that_was_created_again(pair: tuple[Server, Server]) -> None:
    first, second = pair
    old = describe("m", 1, LARGE, True)
    await keep(first.archive, old, LARGE)
    async with await second.archive.open_version(old) as reader, aclosing(reader.chunks(100_000, MIB)) as chunks:
        received = b"".join(await anext(chunks))
        await recreate(first, bytes(len(LARGE)))
        with pytest.raises(NotFoundError):
            received += await rest_of(chunks)
    assert received == LARGE[: len(received)]


async def rest_of(chunks: AsyncIterator[Sequence[memoryview]]) -> bytes:
    """Return what is left to be read."""
    return b"".join([b"".join(chunk) async for chunk in chunks])


@pytest.mark.parametrize("is_copy", [False, True])
async def test_an_upload_of_a_model_that_was_created_again_fails(pair: tuple[Server, Server], is_copy: bool) -> None:
    first, second = pair
    source = describe("m", 1, b"data", True)
    await keep(first.archive, source, b"data")
    async with await (second.archive.open_copy(source) if is_copy else second.archive.open_upload("m", 4)) as upload:
        if not is_copy:
            await upload.write(memoryview(b"data"))
        await upload.finish()
        new = await recreate(first)
        with pytest.raises(NotFoundError):
            await upload.commit(describe("m", 2, b"data", True))
    assert await second.archive.read_version_infos("m", [1, 2]) == [new, None]
    await keep(second.archive, describe("m", 2, b"data", True), b"data")
    assert list(await numbers_of(first)) == [1, 2]


async def test_leftovers_of_a_server_go_and_uploads_of_others_go_on(pair: tuple[Server, Server]) -> None:
    first, second = pair
    kept = describe("m", 1, b"kept", True)
    await keep(first.archive, kept, b"kept")
    left = await first.archive.open_upload("m", len(LARGE))
    await left.write(memoryview(LARGE))
    await left.finish()
    async with await second.archive.open_upload("m", len(LARGE)) as upload:
        await write_pieces(upload, LARGE)
        first.vanish()
        life = second.archive._home.models["m"].life
        # A hint whose record never came, and all that a life has which no model has any more.
        record = layout.Record(describe("m", 9, b"left", True), layout.new_key(first.number), (4,))
        dead = layout.new_life()
        for name in (
            layout.hint_name(life, 9, record),
            layout.version_name(dead, 1),
            layout.hint_name(dead, 1, None),
            layout.data_name(dead, layout.new_key(5), 0),
            "data/notes.txt",
        ):
            await second.objects.put(name, b"")
        assert await second.archive.clear_leftovers(first.number) == 3 + 4
        assert await second.archive.clear_leftovers(first.number) == 0
        info = describe("m", 2, LARGE, True)
        await upload.commit(info)
    assert await read(second.archive, info) == LARGE
    assert await read(second.archive, kept) == b"kept"
    assert len(await names_below(second.objects, layout.DATA)) == 1 + 3 + 1
    await left.aclose()


async def test_a_version_that_was_undone_cannot_appear_later(pair: tuple[Server, Server]) -> None:
    first, second = pair
    first.objects.fail_from(is_record, is_there=False)
    with pytest.raises(UnavailableError):
        await keep(first.archive, describe("m", 1, b"data", True), b"data")
    first.vanish()
    await second.archive.remove_leftover("m", 1, locked)
    first.objects.recover()
    assert await first.objects.deliver() >= 1
    assert await second.archive.read_version_infos("m", [1]) == [None]
    assert list(await numbers_of(second)) == []
    await second.archive.clear_leftovers(first.number)
    assert await gone(second.objects, layout.DATA)
    await keep(second.archive, describe("m", 2, b"next", True), b"next")
    assert list(await numbers_of(first)) == [2]


async def test_undoing_a_version_whose_record_is_there_removes_all_of_it_for_good(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await keep(first.archive, info, b"data")
    first.vanish()
    [name] = await names_below(second.objects, layout.VERSIONS)
    record = await second.objects.get(name)
    second.objects.refused = once(lambda operation, name: operation == "delete" and name.startswith(layout.DATA))
    with pytest.raises(UnavailableError):
        await second.archive.remove_leftover("m", 1, locked)
    for _ in range(2):
        await second.archive.remove_leftover("m", 1, locked)
        assert await gone(second.objects, layout.DATA)
    assert await second.archive.read_version_infos("m", [1]) == [None]
    with pytest.raises(NotFoundError):
        await second.archive.open_version(info)
    first.objects.recover()
    first.objects.refused = lambda operation, _name: operation == "create"
    with pytest.raises(UnavailableError):
        await first.objects.create(name, record)
    first.objects.recover()
    assert await first.objects.deliver() == 1
    assert list(await numbers_of(second)) == []
    await second.archive.remove_leftover("other", 1, locked)


def replaces_record(operation: str, name: str) -> bool:
    return operation == "replace" and name.startswith(layout.VERSIONS)


async def fail_to_keep(server: Server, info: VersionInfo, data: bytes) -> None:
    """Upload a version whose record does not reach the store, which makes its number void."""
    server.objects.refused = once(is_record)
    with pytest.raises(UnavailableError):
        await keep(server.archive, info, data)
    server.objects.recover()


async def check_kept(pair: tuple[Server, Server], info: VersionInfo, data: bytes) -> None:
    """Check that both servers have a version whatever is late, and that nothing is left of other attempts."""
    for server in pair:
        await server.objects.deliver()
    for server in pair:
        await eventually(partial(_has, server, info))
        assert await read(server.archive, info) == data
        assert list(await numbers_of(server)) == [info.number]
        await eventually(partial(_has_one, server, layout.DATA))


async def _has(server: Server, info: VersionInfo) -> bool:
    return await server.archive.read_version_infos(info.model_id, [info.number]) == [info]


async def _has_one(server: Server, prefix: str) -> bool:
    return len(await names_below(server.objects, prefix)) == 1


async def test_a_version_whose_promotion_failed_can_be_promoted_later(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await fail_to_keep(first, info, b"data")
    await second.archive.remove_leftover("m", 1, locked)
    await keep(second.archive, info, b"data")
    await check_kept(pair, info, b"data")


async def test_what_is_late_of_a_promotion_changes_nothing_of_the_next_one(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await fail_to_keep(first, info, b"data")
    first.objects.refused = once(replaces_record)
    with pytest.raises(UnavailableError):
        await keep(first.archive, info, b"data")
    first.objects.recover()
    await keep(second.archive, info, b"data")
    assert await first.objects.deliver() == 2
    await check_kept(pair, info, b"data")


async def test_a_late_undoing_does_not_undo_the_next_promotion(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await fail_to_keep(first, info, b"data")
    second.objects.refused = once(replaces_record)
    with pytest.raises(UnavailableError):
        await second.archive.remove_leftover("m", 1, locked)
    second.objects.recover()
    await keep(first.archive, info, b"data")
    assert await second.objects.deliver() == 1
    await check_kept(pair, info, b"data")


async def test_an_undoing_that_lost_the_lock_changes_nothing(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await fail_to_keep(first, info, b"data")

    async def lose() -> None:
        raise UnavailableError("the test took the lock")

    async def be_late() -> None:
        await keep(second.archive, info, b"data")

    for check in (lose, be_late):
        with pytest.raises(UnavailableError):
            await first.archive.remove_leftover("m", 1, check)
    await check_kept(pair, info, b"data")


@pytest.mark.parametrize("is_there", [False, True])
async def test_an_attempt_in_doubt_does_not_undo_the_next_promotion(
    pair: tuple[Server, Server], is_there: bool
) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    first.objects.fail_from(is_record, is_there=is_there)
    with pytest.raises(UnavailableError):
        await keep(first.archive, info, b"data")
    if is_there:
        await second.archive.remove_leftover("m", 1, locked)
    await keep(second.archive, info, b"data")
    first.objects.recover()
    await check_kept(pair, info, b"data")


async def test_late_writes_of_models_change_nothing(pair: tuple[Server, Server]) -> None:
    first, second = pair
    for round_number in range(2):  # in the second one, there is an object of the model that is created
        writes = (
            first.archive.write_model(ModelInfo("m", {"late": "yes"})),
            first.archive.write_model(ModelInfo("n", {"late": "yes"})),
            first.archive.begin_removal("m"),
        )
        for index, write in enumerate(writes):
            first.objects.fail_from(is_write_of_model, is_there=False)
            with pytest.raises(UnavailableError):
                await write
            data = bytes([round_number, index])
            info = await recreate(second, data)
            await second.archive.write_model(ModelInfo("n", {"late": "no"}))
            first.objects.recover()
            assert await first.objects.deliver() == 1
            found = [each.info for each in await second.archive.scan()]
            assert found == [ModelInfo("m"), ModelInfo("n", {"late": "no"})]
            assert await read(first.archive, info) == data
            await remove(second.archive, "n")


def is_write_of_model(operation: str, name: str) -> bool:
    return operation in ("create", "replace") and name.startswith(layout.MODELS)


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_write_of_a_model_that_was_not_confirmed_is_certain(
    pair: tuple[Server, Server], is_there: bool
) -> None:
    first, second = pair

    def fail_once() -> None:
        rule = once(is_write_of_model)
        first.objects.recover()
        if is_there:
            first.objects.unanswered = rule
        else:
            first.objects.refused = rule

    for write in (
        first.archive.write_model(ModelInfo("m", {"a": "b"})),
        first.archive.write_model(ModelInfo("new")),
        first.archive.begin_removal("m"),
    ):
        fail_once()
        before = [each.info for each in await second.archive.scan()]
        if is_there:
            await write
        else:
            with pytest.raises(UnavailableError):
                await write
            assert await first.objects.deliver() == 1
        assert ([each.info for each in await second.archive.scan()] == before) is not is_there


async def test_a_server_whose_lease_is_gone_writes_nothing(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await keep(first.archive, info, b"data")
    before = await names_below(second.objects, *layout_prefixes())
    async with await first.archive.open_upload("m", 4) as upload:
        first.may_write = False
        for attempt in (
            first.archive.write_model(ModelInfo("other")),
            first.archive.begin_removal("m"),
            first.archive.finish_removal("m"),
            first.archive.remove_version(info),
            first.archive.remove_leftover("m", 1, locked),
            first.archive.open_upload("m", 1),
            first.archive.open_copy(info),
            upload.commit(describe("m", 2, b"", True)),
        ):
            with pytest.raises(UnavailableError):
                await attempt
    assert await names_below(second.objects, *layout_prefixes()) == before
    assert await read(first.archive, info) == b"data"


def layout_prefixes() -> Sequence[str]:
    return (layout.MODELS, layout.VERSIONS, layout.HINTS, layout.DATA)


async def test_an_upload_does_not_outlive_the_lease_under_which_it_began(pair: tuple[Server, Server]) -> None:
    first, second = pair
    async with await first.archive.open_upload("m", 4) as upload:
        await write_pieces(upload, b"data")
        first.number = 3
        await second.archive.clear_leftovers(1)
        with pytest.raises(UnavailableError, match="store it again"):
            await upload.commit(describe("m", 1, b"data", True))
    info = describe("m", 2, b"data", True)
    await keep(first.archive, info, b"data")
    assert await read(second.archive, info) == b"data"


async def test_a_lease_that_is_lost_during_a_commit_undoes_it(pair: tuple[Server, Server]) -> None:
    first, second = pair
    create = first.objects.create

    async def lose_after(name: str, data: bytes) -> None:
        await create(name, data)
        first.may_write = False

    first.objects.create = lose_after  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        await keep(first.archive, describe("m", 1, b"data", True), b"data")
    first.objects.create = create  # type: ignore[method-assign]
    first.may_write = True
    await eventually(lambda: gone(second.objects, layout.DATA))
    assert await second.archive.read_version_infos("m", [1]) == [None]


async def test_another_server_finishes_an_interrupted_removal_of_a_version(pair: tuple[Server, Server]) -> None:
    first, second = pair
    info = describe("m", 1, b"data", True)
    await keep(first.archive, info, b"data")
    first.objects.fail_from(
        lambda operation, name: operation == "delete" and name.startswith(layout.DATA), is_there=False
    )
    with pytest.raises(UnavailableError):
        await first.archive.remove_version(info)
    first.vanish()
    assert not await gone(second.objects, layout.DATA)
    for _ in range(2):
        await second.archive.remove_version(info)
        assert await gone(second.objects, layout.DATA, layout.HINTS, layout.VERSIONS)


@pytest.mark.parametrize("is_begun", [False, True])
async def test_another_server_finishes_an_interrupted_removal_of_a_model(
    pair: tuple[Server, Server], is_begun: bool
) -> None:
    first, second = pair
    await keep(first.archive, describe("m", 1, b"data", True), b"data")
    if is_begun:
        await first.archive.begin_removal("m")
    first.vanish()
    for _ in range(2):
        await second.archive.finish_removal("m")
        assert await gone(second.objects, layout.DATA, layout.HINTS, layout.VERSIONS)
        assert await second.archive.scan() == []
    await second.archive.finish_removal("never there")


async def test_bytes_that_are_read_here_stay_when_their_version_is_removed(pair: tuple[Server, Server]) -> None:
    first, _ = pair
    info = describe("m", 1, LARGE, True)
    await keep(first.archive, info, LARGE)
    async with await first.archive.open_version(info) as reader:
        await first.archive.remove_version(info)
        assert await first.archive.clear_leftovers(first.number) == 0
        assert b"".join(await read_chunks(reader)) == LARGE
    await eventually(lambda: gone(first.objects, layout.DATA))


async def test_the_archive_takes_writes_again_when_the_store_is_back(pair: tuple[Server, Server]) -> None:
    first, _ = pair
    first.objects.refused = lambda _operation, _name: True
    with pytest.raises(UnavailableError):
        await first.archive.write_model(ModelInfo("m"))
    await first.archive.check()
    assert first.archive.failure
    first.objects.recover()
    await first.archive.check()
    assert first.archive.failure == ""
