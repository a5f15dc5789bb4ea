"""The calls about models, and the rule of model ids on every call that takes one."""

import shutil
import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogment_model_registry.server.composition import Server
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import messages as m
from tests.client import Client, connected, next_version, refused, status_of, upload
from tests.server.under_way import BEHIND, under_way

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
MIB = 1024 * 1024
PAGE_BYTES = 4 * MIB
USER_DATA_BYTES = 256 * 1024

QUICKLY = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

GOOD_IDS = [
    *("123", "0", "m", "m-v000001", "m-v000001.yaml", "m-v000001.data", "m.yaml", "m-v", "mm", "m m", "M"),
    *("a", "a.yaml", "a..b", "A", "CON", "con", "nul", "yes", "no", "null", "true", "1e3", "0x1F", "2021-10-01"),
    *("été", "ete", "日本語", "русский", "हिन्दी", "٣", "_", "__init__", "a b", "a:b", "a+b=c@d~(e),f", "lost+found"),
    *("ﬁ", "ａ", "x" * 128, "é" * 64),
]
BAD_IDS = [
    *("", ".", "..", "...", ".hidden", ".lock", "-a", "+a", "=a", "@a", "~a", "(a", ",a", ":a", " a", "a ", "a."),
    *("a/b", "/a", "a/", "../a", "a\\b", "a%b", "a%2fb", "%", "a*", "a?", 'a"b', "a'b", "a<b", "a>b", "a|b", "a;b"),
    *("a#b", "a&b", "a$b", "a!b", "a^b", "a`b", "a[b]", "a{b}"),
    *("a\0b", "\0", "a\nb", "a\n", "a\tb", "a\x7fb", "a\x85b"),
    # Characters that look like separators, or are separators in NFKC: division slash, full-width ones, dot leaders.
    *("a\u2215b", "a\u2044b", "a\uff0fb", "a\uff3cb", "a\u2024", "\u2025", "a\u29f8b", "\uff05", "a\u2100b"),
    # Letters whose NFKC form starts with a space, or ends with a combining mark on a space.
    *("\ufc5e", "\ufe70", "\u037a"),
    # Formatting, invisible, private and unassigned characters, and spaces other than U+0020.
    *("a\u200bb", "a\u00adb", "\ufeffa", "a\u202eb", "a\u2066b", "a\U000e0041", "a\ue000", "a\u0378", "a\u200d"),
    *("a\u00a0b", "a\u3000b", "a\u2028b", "a\u2029b"),
    *("e\u0301te", "\u0301a", "\u212b", "🦊", "€", "x" * 129, "é" * 64 + "x"),
]

CALLS: dict[str, Callable[[Client, str], Awaitable[object]]] = {
    "CreateOrUpdateModel": lambda client, model_id: client.create_model(model_id),
    "DeleteModel": lambda client, model_id: client.delete_model(model_id),
    "RetrieveModels": lambda client, model_id: client.models("m", model_id),
    "CreateVersion, transient": lambda client, model_id: client.publish(model_id, b""),
    "CreateVersion, archived": lambda client, model_id: client.store(model_id, b""),
    "RetrieveVersionInfos": lambda client, model_id: client.infos(model_id),
    "RetrieveVersionInfos by number": lambda client, model_id: client.infos(model_id, 1),
    "RetrieveVersionData": lambda client, model_id: client.data(model_id),
    "VersionUpdate": lambda client, model_id: next_version(client.watching(model_id)),
}


async def listed(client: Client) -> dict[str, dict[str, str]]:
    return {info.model_id: dict(info.user_data) for info in (await client.models()).model_infos}


def ids_of(reply: m.RetrieveModelsReply) -> list[str]:
    return [info.model_id for info in reply.model_infos]


def entries(directory: Path) -> set[str]:
    """Return the contents of an archive, without what is written in the background."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.name not in BEHIND}


# Ids.


@pytest.mark.parametrize("name", CALLS)
async def test_bad_id_is_invalid_on_every_call_and_changes_nothing(client: Client, tmp_path: Path, name: str) -> None:
    await client.create_model("m", kept="yes")
    await client.store("m", b"kept")
    before = entries(tmp_path)
    for model_id in BAD_IDS:
        assert await status_of(CALLS[name](client, model_id)) == INVALID, ascii(model_id)
        assert entries(tmp_path) == before, ascii(model_id)
    assert await listed(client) == {"m": {"kept": "yes"}}
    assert await client.numbers("m") == [1]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "CreateOrUpdateModel"])
async def test_good_id_is_not_found_until_it_is_created_on_every_call(client: Client, name: str) -> None:
    await client.create_model("m")
    await client.delete_model("m")
    for model_id in GOOD_IDS:
        assert await status_of(CALLS[name](client, model_id)) == NOT_FOUND, ascii(model_id)


async def test_all_kinds_of_good_ids_coexist(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        for model_id in GOOD_IDS:
            await client.create_model(model_id, id=model_id)
            await client.publish(model_id, f"transient of {model_id}".encode())
            await client.store(model_id, f"archived of {model_id}".encode(), user_data={"id": model_id})
        for model_id in GOOD_IDS:
            assert await client.data(model_id, 1) == f"transient of {model_id}".encode()
            assert await client.data(model_id, 2) == f"archived of {model_id}".encode()
            assert await client.numbers(model_id) == [1, 2]
            watch = client.watching(model_id)
            assert (await next_version(watch)).user_data == {"id": model_id}
            watch.cancel()
    async with serving(tmp_path / "archive") as server, connected(server.port) as client:
        assert await listed(client) == {model_id: {"id": model_id} for model_id in GOOD_IDS}
        for position, model_id in enumerate(GOOD_IDS):
            assert await client.numbers(model_id) == [2]
            assert await client.data(model_id) == f"archived of {model_id}".encode()
            await client.delete_model(model_id)
            assert ids_of(await client.models()) == sorted(GOOD_IDS[position + 1 :])
    assert entries(tmp_path) == {"archive"}


def is_good(model_id: str) -> bool:
    """The documented rule."""

    def starts_a_name(character: str) -> bool:
        return character == "_" or unicodedata.category(character) in {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"}

    def is_name(text: str) -> bool:
        allowed = (
            starts_a_name(character) or character in "_-.:+=@~(), " or unicodedata.category(character)[0] == "M"
            for character in text
        )
        return all(allowed) and starts_a_name(text[0]) and text[-1] not in " ."

    forms = (model_id, unicodedata.normalize("NFKC", model_id))
    is_normal = unicodedata.normalize("NFC", model_id) == model_id
    return 1 <= len(model_id.encode()) <= 128 and is_normal and all(map(is_name, forms))


@QUICKLY
@given(st.text(st.characters(codec="utf-8", categories=["L", "M", "N", "P", "Z", "Cf"]) | st.sampled_from("a. _é1~")))
async def test_any_text_is_accepted_as_an_id_exactly_when_the_rule_allows_it(client: Client, model_id: str) -> None:
    if is_good(model_id):
        await client.create_model(model_id)
        assert ids_of(await client.models()) == [model_id]
        await client.delete_model(model_id)
    else:
        with refused(INVALID):
            await client.create_model(model_id)
    assert ids_of(await client.models()) == []


# CreateOrUpdateModel.


async def test_create_or_update_replaces_user_data_and_keeps_versions(client: Client) -> None:
    await client.create_model("m", first="1", both="1")
    await client.store("m", b"data")
    await client.create_model("m", both="2", second="2")
    assert await listed(client) == {"m": {"both": "2", "second": "2"}}
    assert await client.data("m") == b"data"
    await client.create_model("m")
    assert await listed(client) == {"m": {}}


async def test_model_is_stored_before_the_reply(client: Client, tmp_path: Path) -> None:
    user_data = {"yes": "1e3", "": "~", "k\n": "\"'\0\u2028", "2021-10-01": "", "ключ": "🦊", "<<": "*a", "a: b": " "}
    await client.create_model("m", first="1")
    await client.create_model("m", **user_data)
    async with (
        serving(shutil.copytree(tmp_path / "archive", tmp_path / "copy")) as server,
        connected(server.port) as other,
    ):
        assert await listed(other) == {"m": user_data}


async def test_create_or_update_without_model_info_is_invalid(client: Client) -> None:
    with refused(INVALID):
        await client.unary("CreateOrUpdateModel", m.CreateOrUpdateModelRequest(), m.CreateOrUpdateModelReply)
    with refused(INVALID):
        request = m.CreateOrUpdateModelRequest(model_info=m.ModelInfo())
        await client.unary("CreateOrUpdateModel", request, m.CreateOrUpdateModelReply)
    assert await listed(client) == {}


async def test_user_data_has_256_kib_of_keys_and_values_at_most(client: Client, tmp_path: Path) -> None:
    largest = {"k": "é" * (USER_DATA_BYTES // 4), "q" * 3: "x" * (USER_DATA_BYTES // 2 - 4)}
    await client.create_model("m", **largest)
    await client.store("m", b"")
    before = entries(tmp_path)
    for model_id in ("m", "new"):
        with refused(INVALID):
            await client.create_model(model_id, **largest, z="")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await client.create_model(model_id, k="x" * 16 * MIB)
    assert await listed(client) == {"m": largest}
    assert entries(tmp_path) == before


# DeleteModel.


async def test_deleted_model_is_gone_at_once_on_every_call(server: Server, client: Client, tmp_path: Path) -> None:
    async with connected(server.port) as other:
        await client.create_model("m", a="b")
        await client.publish("m", b"transient")
        await client.store("m", b"archived")
        await client.delete_model("m")
        for name, call in CALLS.items():
            if name != "CreateOrUpdateModel":
                assert await status_of(call(other, "m")) == NOT_FOUND, name
        assert await listed(other) == {}
        assert await other.status("transient_bytes", "versions") == {"transient_bytes": "0", "versions": "0"}
    assert entries(tmp_path) == {"archive"}


async def test_recreated_model_has_nothing_of_the_old_one(client: Client) -> None:
    await client.create_model("m", old="1")
    await client.store("m", b"old")
    await client.delete_model("m")
    await client.create_model("m")
    assert await listed(client) == {"m": {}}
    assert await client.numbers("m") == []


@pytest.mark.parametrize("archived", [False, True], ids=["transient", "archived"])
async def test_readers_finish_a_deleted_version_and_its_memory_is_then_freed(client: Client, archived: bool) -> None:
    data = Random(1).randbytes(40 * MIB)
    await client.create_model("m")
    await client.create_version(upload("m", data, archived))
    call = client.streamed("RetrieveVersionData", m.RetrieveVersionDataRequest(model_id="m", version_number=1))
    received = [await call.read()]
    await client.delete_model("m")
    assert (await client.status("retrievals"))["retrievals"] == "1"
    while (message := await call.read()) is not grpc.aio.EOF:
        received.append(message)
    assert b"".join(m.RetrieveVersionDataReplyChunk.FromString(chunk).data_chunk for chunk in received) == data
    await under_way(client, transient_bytes=0)
    await client.create_model("m")
    assert (await client.publish("m", data + data[: 24 * MIB])).data_size == 64 * MIB


# RetrieveModels.


async def test_listing_is_as_documented(client: Client) -> None:
    assert MessageToDict(await client.models()) == {"nextModelHandle": "0"}
    await client.create_model("my_other_model", type="my_model_type")
    await client.create_model("my_model", type="my_model_type")
    models = [{"modelId": name, "userData": {"type": "my_model_type"}} for name in ("my_model", "my_other_model")]
    assert MessageToDict(await client.models()) == {"modelInfos": models, "nextModelHandle": "2"}
    assert MessageToDict(await client.models("my_other_model")) == {"modelInfos": models[1:], "nextModelHandle": "1"}


async def test_requested_ids_come_in_order_with_duplicates_over_pages(client: Client) -> None:
    for model_id in "abc":
        await client.create_model(model_id)
    asked = [*"cabcca"]
    assert ids_of(await client.models(*asked)) == asked
    pages = [await client.models(*asked, count=4, handle=handle) for handle in ("", "4", "6")]
    assert [ids_of(page) for page in pages] == [asked[:4], asked[4:], []]
    assert [page.next_model_handle for page in pages] == ["4", "6", "6"]


async def test_one_unknown_id_in_a_request_is_not_found(client: Client) -> None:
    await client.create_model("a")
    for asked in (["b"], ["a", "b"], ["b", "a"], ["a", "A"]):
        with refused(NOT_FOUND):
            await client.models(*asked)


async def test_handle_of_the_next_page_is_the_count_of_models_so_far(client: Client) -> None:
    names = sorted(f"model {number}" for number in range(25))
    for name in reversed(names):
        await client.create_model(name)
    handle, found = "", []
    for expected_count in (10, 10, 5, 0):
        page = await client.models(count=10, handle=handle)
        assert len(page.model_infos) == expected_count
        found += ids_of(page)
        handle = page.next_model_handle
        assert handle == str(len(found))
    assert found == names


@pytest.mark.parametrize("handle", ["x", "-1", "+1", "1.0", " 1", "1 ", "1\n", "1e3", "0x1", "1_0", "@1", "٣", "\0"])
async def test_handle_that_is_not_a_plain_decimal_number_is_invalid(client: Client, handle: str) -> None:
    await client.create_model("m")
    for ids in ((), ("m",)):
        with refused(INVALID):
            await client.models(*ids, handle=handle)


@pytest.mark.parametrize("handle", ["1", "2", "4294967296", "18446744073709551616", "9" * 100, "9" * 10_000])
async def test_handle_past_the_end_is_ok_and_empty(client: Client, handle: str) -> None:
    await client.create_model("m")
    for ids in ((), ("m",)):
        page = await client.models(*ids, handle=handle)
        assert ids_of(page) == []
        assert page.next_model_handle == handle


async def test_request_lists_10_000_ids_at_most(client: Client) -> None:
    await client.create_model("m")
    assert ids_of(await client.models(*["m"] * 10_000)) == ["m"] * 10_000
    for model_id in ("m", "unknown"):
        with refused(INVALID):
            await client.models(*[model_id] * 10_001)


@pytest.mark.parametrize("is_explicit", [False, True], ids=["all", "given"])
async def test_page_ends_below_4_mib_only_without_a_count(client: Client, is_explicit: bool) -> None:
    names = [f"m{number:02}" for number in range(25)]
    for name in names:
        await client.create_model(name, k="x" * 200_000)
    asked = names if is_explicit else []
    page = await client.models(*asked)
    assert PAGE_BYTES - 200_100 < page.ByteSize() < PAGE_BYTES
    rest = await client.models(*asked, handle=page.next_model_handle)
    assert ids_of(page) + ids_of(rest) == names
    assert ids_of(await client.models(*asked, count=25)) == names


@QUICKLY
@given(count=st.integers(0, 2**32 - 1), handle=st.just("") | st.integers(0, 2**70).map(str))
async def test_any_count_and_any_numeric_handle_return_a_page(client: Client, count: int, handle: str) -> None:
    for name in "abc":
        await client.create_model(name)
    start = int(handle or "0")
    expected = [*"abc"][start : start + (count or 3)]
    for asked in ([], [*"abc"]):
        page = await client.models(*asked, count=count, handle=handle)
        assert ids_of(page) == expected
        assert page.next_model_handle == str(start + len(expected))
