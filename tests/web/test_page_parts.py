"""What the pages are made of, without a browser: texts, rights, tensors, rows and what open pages are sent."""

import asyncio
import contextlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.types import Message

from cogment_model_registry import ModelRegistry
from cogment_model_registry.errors import InvalidError, UnavailableError
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.lifecycle import Alias, ModelSummary, Version
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.pages import (
    compare,
    consumers,
    differences,
    formats,
    install,
    live,
    models,
    queries,
    rule_forms,
)
from cogment_model_registry.web.pages.aliases import candidates, earlier_targets
from cogment_model_registry.web.pages.changes import Plan
from cogment_model_registry.web.pages.compare import metric_lines, tensor_lines
from cogment_model_registry.web.pages.consumers import by_model, overview_of
from cogment_model_registry.web.pages.differences import _add, _Sums, grouped
from cogment_model_registry.web.pages.history import state_text
from cogment_model_registry.web.pages.live import Feed, Sent
from cogment_model_registry.web.pages.queries import pace_of
from cogment_model_registry.web.pages.retention import parsed_rules
from cogment_model_registry.web.pages.rights import rights_of
from cogment_model_registry.web.pages.tensors import Listing, MalformedError, Tensor, parse_header
from cogment_model_registry.web.pages.unknown_names import names_in
from cogment_model_registry.web.pages.version import quoted_text, retrieval_of
from cogment_model_registry.web.pages.version_changes import changed_notes
from cogment_model_registry.web.registries import Caller, Registry
from cogment_model_registry.web.state import State
from cogment_model_registry.wire.forwarding import Description
from cogment_model_registry.wire.watching import Reply
from tests.processes import run_cogment
from tests.waiting import PATIENCE_SECONDS
from tests.web.http import Http, HttpServer, http_server

PAGE = {"Accept": "text/html"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0.4 s"), (59.9, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (86400 * 12.5, "12 d")],
)
def test_spans_have_the_units_that_people_use(seconds: float, text: str) -> None:
    assert formats.span_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (487.5, "487.5"), (1 / 3, "0.333333"), (1e-9, "1e-09"), (-2.5e9, "-2.5e+09")],
)
def test_metrics_have_the_digits_that_people_compare(value: float, text: str) -> None:
    assert formats.metric_text(value) == text


@pytest.mark.parametrize(("rate", "text"), [(2.0, "2 / s"), (0.5, "30 / min"), (1 / 3600, "1 / h"), (0.0, "\u2013")])
def test_rates_have_the_unit_that_makes_them_at_least_one(rate: float, text: str) -> None:
    assert formats.rate_text(rate) == text


def test_the_rate_of_a_trainer_that_stopped_falls() -> None:
    versions = [Version("m", number, number * formats.NS_PER_SECOND, True, "", 1) for number in range(1, 11)]
    now_ns = 10 * formats.NS_PER_SECOND
    assert pace_of(versions, now_ns).per_second == 1
    assert pace_of(versions, now_ns + 81 * formats.NS_PER_SECOND).per_second == 0.1
    assert pace_of([], now_ns).latest is None


def _header(header: object, size_bytes: int) -> Any:
    text = json.dumps(header).encode()
    return parse_header(text, 8 + len(text), 8 + len(text) + size_bytes)


def test_the_header_of_a_safetensors_file_has_its_tensors() -> None:
    data = save({"a": numpy.zeros((2, 3), numpy.float32), "b": numpy.zeros((), numpy.int64)}, {"note": "x"})
    end = 8 + int.from_bytes(data[:8], "little")
    listing = parse_header(data[8:end], end, len(data))
    found = {tensor.name: (tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in listing.tensors}
    assert found == {"a": ("float32", (2, 3), 24), "b": ("int64", (), 8)}
    assert listing.metadata == {"note": "x"}
    assert listing.elements == 7


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}},
        {"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"a": 1}},
        {str(number): {} for number in range(20_001)},
    ],
)
def test_a_hostile_header_is_refused(header: object) -> None:
    with pytest.raises(MalformedError):
        _header(header, 100)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff{}", b"null"])
def test_a_header_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_header(text, 8, 8)


def test_a_version_with_a_hostile_header_has_a_page_that_says_so(http: Http, registry: ModelRegistry) -> None:
    registry.publish("walker", (10).to_bytes(8, "little") + b'{"a": nope' + bytes(50))
    registry.publish("walker", (5 * 2**20).to_bytes(8, "little") + b"{" + bytes(6 * 2**20))
    registry.publish("walker", (2**63).to_bytes(8, "little") + b"{}")
    assert "its header is not JSON" in http.get("/models/walker/versions/1", PAGE).text
    assert "The header has 5,242,880 bytes" in http.get("/models/walker/versions/2", PAGE).text
    assert "Tensors" not in http.get("/models/walker/versions/3", PAGE).text


def test_a_version_that_is_a_folder_shows_its_files(http: Http, registry: ModelRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    (folder / "deep" / ("d" * 90)).mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(3 * 1024 * 1024))
    (folder / "deep" / ("d" * 90) / f"{'n' * 120}.json").write_bytes(b"{}")
    registry.publish("walker", folder)
    text = http.get("/models/walker/versions/1", PAGE).text
    assert "weights.bin" in text
    assert "3.0 MiB" in text
    assert f"deep/{'d' * 90}/{'n' * 120}.json" in text
    registry.publish("walker", b"no archive", user_data={"format": "folder.tar"})
    assert "its bytes are not a tar archive" in http.get("/models/walker/versions/2", PAGE).text


@pytest.mark.parametrize("name", ["weight", "\ud800"], ids=ascii)
@pytest.mark.parametrize("dtype", ["float32", "O", "U4", "f8,f8", "(2,2)f8", "\ud800"], ids=ascii)
def test_names_of_types_and_tensors_may_be_any_text(http: Http, registry: ModelRegistry, dtype: str, name: str) -> None:
    header = json.dumps({name: {"dtype": dtype, "shape": [16], "data_offsets": [0, 63]}}).encode()
    for data in (bytes(63), b"x" * 63):
        registry.publish("walker", len(header).to_bytes(8, "little") + header + data)
    assert http.get("/models/walker/versions/1", PAGE).status == 200
    page = http.get("/models/walker/compare?first=1&second=2", PAGE)
    is_text = (name + dtype).isprintable()
    assert (page.status, "some" in page.text, "is not JSON" in page.text) == (200, is_text, not is_text)


def test_a_type_with_the_name_of_another_one_is_not_compared_with_it() -> None:
    named = _listing_of("float32", 65), _listing_of("F32", 64)
    assert [line.is_comparable for line in tensor_lines(*named)] == [False]
    assert [line.is_comparable for line in tensor_lines(named[1], named[1])] == [True]


async def test_a_comparison_ends_with_the_connection_of_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    class Registry:
        async def describe_model(self, _model_id: str) -> None:
            return None

        async def describe_version(self, _model_id: str, number: int) -> int:
            return number

    async def rights(_request: Request) -> None:
        return None

    has_ended = False

    async def compared(*_versions: object, is_asked: bool) -> None:
        nonlocal has_ended
        try:
            await asyncio.Event().wait()
        finally:
            has_ended = is_asked

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    monkeypatch.setattr(compare, "read_rights", rights)
    monkeypatch.setattr(compare, "registry_of", lambda _request: Registry())
    monkeypatch.setattr(compare, "_compared", compared)
    scope = {"type": "http", "path_params": {"model_id": "m"}, "query_string": b"first=1&second=2&tensors=yes"}
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RefusedError):
            await compare.show(Request(scope, receive))
    assert has_ended


def _listing_of(code: str, size_bytes: int) -> Listing:
    entry = {"dtype": code, "shape": [16], "data_offsets": [0, size_bytes]}
    return parse_header(json.dumps({"weight": entry}).encode(), 0, size_bytes)


def test_tensors_of_any_type_are_compared() -> None:
    sums = _Sums()
    first, second = numpy.array([1, numpy.nan, 3], "<f4"), numpy.array([1, numpy.nan, 5], "<f4")
    assert _add(sums, "float32", first.tobytes(), second.tobytes())
    assert (sums.changed, sums.greatest, sums.is_finite) == (1, 2.0, False)
    assert math.isclose(sums.difference_squares / sums.squares, 4 / 10)
    sums = _Sums()
    halves = [(numpy.array(each, "<f4").view("<u4") >> 16).astype("<u2").tobytes() for each in ([1.0, 2.0], [1.0, 4.0])]
    assert _add(sums, "bfloat16", *halves)
    assert (sums.changed, sums.greatest) == (1, 2.0)
    assert not _add(sums, "F4", b"\x01", b"\x02")


@pytest.mark.skipif(numpy.finfo(numpy.longdouble).nmant < 63, reason="NumPy has no numbers with more than 53 bits")
def test_large_numbers_that_differ_by_one_are_different() -> None:
    sums = _Sums()
    first, second = numpy.array([2**62, 5], "<i8"), numpy.array([2**62 + 1, 5], "<i8")
    assert _add(sums, "int64", first.tobytes(), second.tobytes())
    assert (sums.changed, sums.greatest) == (1, 1.0)


def _consumer(name: str, number: int, behind: int, state: Any = "active", model_id: str = "m") -> Consumer:
    return Consumer(model_id, name, number, state, versions_behind=behind, seconds_behind=behind * 10.0)


def test_those_that_are_furthest_behind_come_first_and_those_that_are_gone_last() -> None:
    every = [_consumer("a", 5, 0), _consumer("b", 1, 4, "gone"), _consumer("c", 3, 2), _consumer("d", 3, 2, "failed")]
    overview = overview_of(every, now=1000.25)
    assert [row.consumer.consumer_id for row in overview.rows] == ["d", "c", "a", "b"]
    assert [row.behind_since_ms for row in overview.rows] == [980_000, 980_000, 0, 0]
    assert (overview.live, overview.gone, overview.behind, overview.failed, overview.greatest) == (3, 1, 2, 1, 2)
    assert [(share.version_number, share.count) for share in overview.shares] == [(5, 1), (3, 2)]
    assert by_model(every) == {"m": (3, 2)}


def test_an_open_page_is_sent_what_it_lacks_and_nothing_else() -> None:
    feed, sent = Feed(), Sent()
    assert sent.difference(feed) == ""
    feed.tables["consumers"], feed.parts["spread"] = {"a": "A", "b": "B"}, "S"
    assert json.loads(sent.difference(feed)) == {
        "parts": {"spread": "S"},
        "tables": {"consumers": {"order": ["a", "b"], "rows": {"a": "A", "b": "B"}}},
    }
    assert sent.difference(feed) == ""
    feed.tables["consumers"] = {"b": "B", "a": "A2"}
    assert json.loads(sent.difference(feed)) == {
        "parts": {},
        "tables": {"consumers": {"order": ["b", "a"], "rows": {"a": "A2"}}},
    }
    feed.tables["consumers"] = {"b": "B"}
    assert json.loads(sent.difference(feed))["tables"]["consumers"] == {"order": ["b"], "rows": {}}


def test_an_alias_is_rolled_back_to_where_it_was_first_of_all() -> None:
    versions = {number: Version("m", number, 0, True, "", 1) for number in (9, 7, 5, 3)}
    alias = Alias("production", 7, 4, 0)
    assert [each.version.number for each in candidates(alias, [], [versions[5], versions[3]])] == [5, 3]
    found = candidates(alias, [versions[9], versions[3]], [versions[7], versions[5], versions[3]])
    assert [(each.version.number, each.was_there) for each in found] == [(9, True), (3, True), (5, False)]
    assert [each.version.number for each in candidates(None, [], [*versions.values()])] == [9, 7, 5, 3]


def test_what_an_alias_pointed_to_is_in_the_order_in_which_that_ended() -> None:
    befores = [{"version_number": 3}, {"version_number": 9}, {"version_number": 3}, {"version_number": 7}, None]
    entries = [
        HistoryEntry(time_ns, "alias set", "m", 7, "production", before, None, "", "", "anonymous", "", "")
        for time_ns, before in zip((50, 40, 30, 20, 10), befores, strict=True)
    ]
    assert earlier_targets(Alias("production", 7, 4, 0), entries) == {3: 50, 9: 40}
    assert earlier_targets(None, entries) == {3: 50, 9: 40, 7: 20}


def _tensor(start: int, elements: int, name: str = "") -> Tensor:
    return Tensor(name, "float32", 4, (elements,), start, elements * 4)


def test_small_tensors_are_read_together_and_large_ones_alone() -> None:
    small = [(_tensor(100 + 16 * at, 4), _tensor(300 + 16 * at, 4)) for at in range(10)]
    large = (_tensor(260, 3 << 20), _tensor(460, 3 << 20))
    far = [(_tensor(1 << 28, 4), _tensor(1 << 24, 4)), (_tensor((1 << 28) + 16, 4), _tensor(1 << 20, 4))]
    groups = [len(group) for group in grouped([large, *far, *reversed(small)])]
    assert groups == [10, 1, 1, 1]


async def test_a_comparison_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_bytes(_registry: object, _version: object, _start: int, length: int) -> bytes:
        return bytes(length)

    monkeypatch.setattr(differences, "read_part", no_bytes)
    pairs = [(_tensor(at << 24, 4, str(at)),) * 2 for at in range(4)]
    version: Any = None

    async def compared() -> list[str]:
        return [pair[0].name async for pair, _ in differences.compare(version, (version, version), pairs)]

    assert await compared() == ["0", "1", "2", "3"]
    monkeypatch.setattr(differences, "COMPARISON_SECONDS", 0.0)
    assert await compared() == []


def test_numbers_of_versions_are_ranges() -> None:
    assert formats.ranges_text([1, 2, 3, 5, 8, 9]) == "1-3, 5, 8-9"
    assert formats.ranges_text([1, 3, 5, 6, 7], 2) == "1, 3 and 3 others"
    assert formats.numbers_in("1-3, 5, 8-9") == [1, 2, 3, 5, 8, 9]
    assert formats.numbers_in("") == []
    for wrong in ("0", "2-1", "1, 1", "5, 3", "1-", "x", "1-9999999999", "1,2"):
        with pytest.raises(InvalidError):
            formats.numbers_in(wrong)


def test_a_form_of_rules_says_what_is_wrong_with_which_field() -> None:
    rules = [RetentionRule("any", "tags.a = b", keep_best=3, metric="loss", lower_is_better=True)]
    assert rule_forms.rules_of(rule_forms.rows_of(rules)) == (rules, {})
    rows = rule_forms.rows_in(
        {
            "tier-0": "archived",
            "tier-1": "any",
            "keep_last-1": "2",
            "tier-2": "any",
            "keep_best-2": "x",
            "remove-2": "yes",
        }
    )
    assert rule_forms.rules_of(rows) == ([RetentionRule(keep_last=2)], {})
    for name, text, field in (
        ("keep_last", "-1", "keep_last-0"),
        ("keep_last", "99999999999", "keep_last-0"),
        ("keep_best", "2", "metric-0"),
        ("metric", "loss", "keep_best-0"),
        ("tier", "none", "tier-0"),
        ("lower_is_better", "yes", "keep_best-0"),
    ):
        found, problems = rule_forms.rules_of([{**rule_forms.BLANK, "tier": "any", "filter": "x = 1", name: text}])
        assert (found, [*problems]) == ([], [field])
    assert [*rule_forms.problems_in("trying rules: retention rule 2: the filter is malformed")] == ["filter-1"]


def test_a_plan_that_would_do_something_else_has_another_digest() -> None:
    plan = Plan("Delete", ["gone"], "Delete", "/", {"revision": "1"}, outlook=["3 consumers run it"])
    assert replace(plan, outlook=["4 consumers run it"], values={"x": 1}).digest == plan.digest
    for other in (
        replace(plan, title="Keep"),
        replace(plan, effects=["kept"]),
        replace(plan, warnings=["an alias"]),
        replace(plan, fields={"revision": "2"}),
    ):
        assert other.digest != plan.digest


async def test_fifty_first_pages_cost_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: Counter[str] = Counter()

    async def search(_registry: object, _text: str, _token: str) -> models.Found:
        requests["search"] += 1
        return models.Found([ModelSummary(model_id) for model_id in names])

    async def named_models(_registry: object, ids: list[str]) -> list[ModelSummary]:
        requests["named"] += 1
        return [ModelSummary(model_id) for model_id in ids]

    async def read_consumers(_registry: object, _model_id: object) -> list[Consumer]:
        requests["consumers"] += 1
        return []

    names = ["walker"]
    monkeypatch.setattr(models, "search", search)
    monkeypatch.setattr(queries, "named_models", named_models)
    monkeypatch.setattr(consumers, "read_consumers", read_consumers)
    monkeypatch.setattr(live, "_LIST_SECONDS", 3600.0)  # the pause after the first look
    state = State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))
    feeds = install(state)
    rights = Description("a caller without a token", "anonymous", ("read",))
    pages = [feeds.events(Caller(f"ipv4:10.0.0.{number}:1"), rights, live.Subject()) for number in range(50)]
    try:
        for page in pages:
            assert await anext(page) == "retry: 2000\n\n"
        for page in pages:
            assert "walker" in await anext(page)
        assert requests["consumers"] == 1
        assert requests["search"] <= 2  # one of which the rows wait for
    finally:
        for page in pages:
            await page.aclose()
        await feeds.close()
        await state.registry.close()


async def test_a_first_page_whose_search_fails_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = 0

    async def search(_registry: object, _text: str, _token: str) -> models.Found:
        nonlocal searches
        searches += 1
        if searches > 2:  # after that of the feed, and the one that its rows wait for
            raise UnavailableError("the catalog is not available")
        return models.Found([ModelSummary("walker")])

    async def found(*_arguments: object) -> list[Any]:
        return []

    monkeypatch.setattr(models, "search", search)
    monkeypatch.setattr(queries, "named_models", found)  # answers, as a cache may
    monkeypatch.setattr(consumers, "read_consumers", found)
    monkeypatch.setattr(live, "_LIST_SECONDS", 0.0)
    state = State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))
    feeds = install(state)
    rights = Description("a caller without a token", "anonymous", ("read",))
    async with asyncio.timeout(PATIENCE_SECONDS):
        events = [event async for event in feeds.events(Caller("ipv4:10.0.0.1:1"), rights, live.Subject())]
    assert "walker" in "".join(events)
    await feeds.close()
    await state.registry.close()


async def test_pages_of_callers_with_other_rights_share_nothing() -> None:
    state = State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))
    feeds = install(state)
    caller = Caller("ipv4:127.0.0.1:1")
    rights = [
        Description("a", "token", ("read",)),
        Description("b", "token", ("read",)),
        Description("a", "subject", ("read",)),
        Description("a", "token", ("read:walker",)),
    ]
    pages = [feeds.events(caller, each, live.Subject("walker")) for each in [*rights, rights[0]]]
    for page in pages:
        await anext(page)
    assert len(feeds._feeds) == len(rights)
    for page in pages:
        await page.aclose()
    await feeds.close()
    await state.registry.close()


async def test_a_page_reads_one_change_of_a_busy_model_and_no_more_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = iter(
        [
            Reply("1", None),
            Reply("2", Version("walker", 7, 0, True, "", 1)),
            Reply("3", Version("walker", 8, 0, True, "", 1)),
        ]
    )
    requested: list[str] = []

    class Stream:
        async def read(self) -> bytes:
            return b"a reply"

    @contextlib.asynccontextmanager
    async def streaming(*_arguments: object, **_options: object) -> AsyncIterator[Stream]:
        yield Stream()

    def watch_request(_models: object, token: str, **_options: object) -> bytes:
        requested.append(token)
        return b""

    monkeypatch.setattr(live, "streaming", streaming)
    monkeypatch.setattr("cogment_model_registry.wire.watching.watch_request", watch_request)
    monkeypatch.setattr("cogment_model_registry.wire.watching.decode_reply", lambda _message: next(replies))
    state = State(WebOptions(socket_path="", descriptors=(), grpc_port=9002), Registry("unused"))
    install(state)
    source = live._Source(
        state,
        Feed(),
        rights_of(Description("", "token", ()), has_session=False),
        live.Subject("walker"),
        lambda seconds: seconds,
    )
    assert await source._changed_after("0") == "2"
    assert await source._changed_after("2") == "3"
    assert requested == ["0", "2"]
    await state.registry.close()


def test_scopes_say_what_the_pages_offer() -> None:
    scopes = ("read", "alias:walker/canary*", "delete:arm", "something:new")
    rights = rights_of(Description("me", "token", scopes), has_session=True)
    assert rights.may("alias", "walker", "canary-2")
    assert not rights.may("alias", "walker", "production")
    assert rights.may("delete", "arm")
    assert not rights.may_force("arm")
    assert not rights.may_everything
    assert rights.missing("walker") == (
        "You may not promote versions or delete versions here: you need the scope store or delete."
    )


@pytest.mark.parametrize("text", ["", "x", "{}", "[1]", '[{"keep": 1}]', '[{"keep_last": "3"}]', "[" * 20_000])
def test_rules_that_are_none_are_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidError):
        parsed_rules(text)


def test_a_form_of_notes_says_what_is_set_and_what_is_removed() -> None:
    fields = {"tag:a": "x", "tag:b:c": "", "metric:m": "1.5", "metric:n": " ", "tag-name-0": "new", "tag-value-0": "v"}
    assert changed_notes(fields) == ({"a": "x", "b:c": None, "new": "v"}, {"m": 1.5, "n": None})
    for wrong in ({"metric:m": "inf"}, {"metric:m": "x"}, {"tag-value-1": "v"}):
        with pytest.raises(InvalidError):
            changed_notes(wrong)


def test_metrics_that_one_version_lacks_have_no_change() -> None:
    first = Version("m", 1, 0, True, "", 1, metrics={"a": 2.0, "b": 1.0, "z": 0.0})
    second = Version("m", 2, 0, True, "", 1, metrics={"a": 3.0, "z": 1.0})
    lines = [(line.name, line.first, line.second, line.change) for line in metric_lines(first, second)]
    assert lines == [("a", "2", "3", "+1 (+50.0%)"), ("b", "1", "", ""), ("z", "0", "1", "+1")]
    assert [line.change for line in metric_lines(first, first)] == ["", "", ""]


def test_addresses_that_people_shorten_or_guess_lead_to_pages(http: Http, registry: ModelRegistry) -> None:
    registry.store("walker", b"1", alias="production")
    registry.store("walker", b"2")
    for address, target in (
        ("/models", "/"),
        ("/models/walker/versions", "/models/walker#versions"),
        ("/models/walker/versions/latest", "/models/walker/versions/2"),
        ("/models/walker/versions/-2", "/models/walker/versions/1"),
        ("/models/walker/versions/production", "/models/walker/versions/1"),
    ):
        answer = http.get(address, PAGE)
        assert (answer.status, answer.headers["location"]) == (HTTPStatus.SEE_OTHER, target)
    assert (
        'href="/models/walker/aliases/production/data" download'
        in http.get("/models/walker/aliases/production", PAGE).text
    )


def test_tensors_that_cannot_be_compared_are_shown_first(http: Http, registry: ModelRegistry) -> None:
    for size in (2, 3):
        tensors = {"a": numpy.full(4, size, numpy.float32), "b": numpy.ones(size, numpy.float32)}
        registry.store("walker", save(tensors), alias="canary")
    shown = http.get("/models/walker/compare?first=1&second=2", PAGE).text
    assert shown.index("<code>b</code>") < shown.index("different type or shape") < shown.index("<code>a</code>")
    assert '<tr class="differs"><th scope="row">Aliases</th><td>–</td><td>canary</td>' in shown


def test_texts_of_filters_are_quoted() -> None:
    assert quoted_text('a "b" \\') == '"a \\"b\\" \\\\"'


def test_the_history_shows_what_differs() -> None:
    before, after = {"version_number": 3, "revision": 1}, {"version_number": 4, "revision": 2}
    assert state_text(before, after) == "version 3"
    assert state_text(None, after) == ""
    assert state_text({"tags": {"a": "1", "b": "2"}, "archived": False}, {"tags": {"a": "1"}, "archived": True}) == (
        "tags b = 2; archived no"
    )
    assert state_text({"tags": {"a": "1"}}, {"tags": {"a": "1", "b": "2"}}) == ""
    stored = {"data_size_bytes": 29_656, "user_data": {}, "metrics": {"return": 473.0, "loss": 1e-5}, "revision": 1}
    assert state_text(stored, None) == "size 29.0 KiB; metrics loss = 1e-05, return = 473"
    assert state_text({"retention": ["keep the last 1", "keep the last 2"]}, {"retention": []}) == (
        "retention keep the last 1; keep the last 2"
    )


def test_everything_that_others_wrote_is_escaped(http: Http, registry: ModelRegistry) -> None:
    evil = "<script>alert(1)</script>"
    registry.publish("walker", b"weights", tags={evil: evil, "run": evil}, user_data={evil: evil}, metrics={evil: 1.0})
    registry.report_consumer("walker", "actor", state="failed", error=evil, labels={evil: evil}, version=1)
    for path in ("/", "/models/walker", "/models/walker/versions/1", "/models/walker/versions/1/notes"):
        text = http.get(path, PAGE).text
        assert "alert(1)" in text
        assert evil not in text


@pytest.mark.parametrize(
    "path",
    ["/models/walker/versions/0x1", "/models/walker/versions/99999999999999999999", "/models/walker/versions/9/delete"],
)
def test_versions_that_do_not_exist_are_not_found(http: Http, registry: ModelRegistry, path: str) -> None:
    registry.publish("walker", b"weights")
    assert http.get(path, PAGE).status == 404


def test_a_page_of_a_model_stays_small_whatever_is_noted_about_its_versions(
    http: Http, registry: ModelRegistry
) -> None:
    notes = {f"tag-{number}-{'x' * 60}": "y" * 200 for number in range(20)}
    metrics = {f"metric-{number}-{'x' * 60}": number / 7 for number in range(20)}
    for _ in range(60):
        registry.publish("walker", b"weights", tags=notes, metrics=metrics)
    labels = {f"label-{number}": "z" * 180 for number in range(10)}
    for number in range(200):
        registry.report_consumer("walker", f"actor-{number:03d}-{'x' * 40}", version=1 + number % 60, labels=labels)
    for path in ("/models/walker", "/models/walker?order=metrics.loss", "/"):
        assert len(http.get(path, PAGE).body) <= 150 * 1024


def test_a_form_from_another_site_changes_nothing(http: Http, registry: ModelRegistry) -> None:
    registry.store("walker", b"weights")
    answer = http.form(
        "/models/walker/aliases/production/move", "version=1&revision=0", {"Origin": "http://evil.example"}
    )
    assert answer.status == 403
    assert registry.aliases("walker") == {}


def test_a_page_that_stays_current_does_not_hold_up_the_end_of_the_server(tmp_path: Path) -> None:
    with http_server(tmp_path / "archive") as server:
        with ModelRegistry(server.endpoint) as registry:
            registry.publish("walker", b"weights")
        connection = server.http.connect()
        connection.request("GET", "/models/walker/live")
        answer = connection.getresponse()
        assert answer.readline() == b"retry: 2000\n"
        assert server.process.stop() == 0
        connection.close()


def test_pages_share_one_feed(shared_http: HttpServer, registry: ModelRegistry) -> None:
    registry.publish("walker", b"weights")
    connections = [shared_http.http.connect() for _ in range(5)]
    for connection in connections:
        connection.request("GET", "/models/walker/live")
    answers = [connection.getresponse() for connection in connections]
    for answer in answers:
        line = answer.readline()
        while not line.startswith(b"data:"):
            line = answer.readline()
        news = json.loads(line[5:])
        assert news["tables"]["versions"]["order"] == ["1"]
    for connection in connections:
        connection.close()


def _text(http: Http, path: str) -> str:
    """Return the text of a page, without its tags and with single spaces."""
    answer = http.get(path, PAGE)
    assert answer.status == HTTPStatus.OK
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())


def test_without_a_history_pages_of_aliases_do_not_speak_of_rolling_back(http: Http, registry: ModelRegistry) -> None:
    for number in range(1, 4):
        registry.store("walker", b"%d" % number)
    registry.set_alias("walker", "production", 3)
    page = _text(http, "/models/walker/aliases/production")
    assert "Older archived versions" in page
    assert "Point to 2" in page
    assert "Roll back" not in page
    assert "This server keeps no history, because its setting audit_log is not set. With it, this page shows" in page
    assert "because its setting audit_log is not set." in _text(http, "/models/walker/history")


def test_with_a_history_pages_of_aliases_offer_what_had_the_alias_to_those_who_may_read_it(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with http_server(archive, f"--audit_log={tmp_path / 'audit'}") as server:
        command = ("token", "create", "--name=mover", "--scope=read", "--scope=alias", f"--archive_dir={archive}")
        mover = server.http.with_token(run_cogment(*command).stdout.strip())
        with ModelRegistry(server.endpoint) as registry:
            for number in range(1, 4):
                registry.store("walker", b"%d" % number)
                if number > 1:
                    registry.set_alias("walker", "production", number)
        page = _text(server.http, "/models/walker/aliases/production")
        assert "Was production" in page
        assert "Roll back to 2 just before" in page
        assert "Point to 1 –" in page
        other = _text(mover, "/models/walker/aliases/production")
        assert "You need the scope admin to read the history." in other
        assert "Point to 2" in other
        assert "Roll back" not in other


def test_the_commands_that_retrieve_a_version_name_the_server() -> None:
    version = Version("two legs", 7, 0, True, "", 1)
    options = WebOptions(socket_path="", descriptors=(), grpc_port=9102)
    found = retrieval_of(URL("http://models.example:9080/models/x?y=z"), options, version, has_token=False)
    assert found.notes == []
    assert found.commands["Command line"] == (
        "cogment client model_registry retrieve 'two legs' 7 --output=two_legs-7.bin "
        "--endpoint=grpc://models.example:9102"
    )
    assert 'ModelRegistry("grpc://models.example:9102")' in found.commands["Python"]
    assert found.commands["curl"] == (
        "curl --fail --output two_legs-7.bin http://models.example:9080/models/two%20legs/versions/7/data"
    )


def test_the_commands_that_retrieve_a_version_have_the_token_and_the_certificates_that_they_need() -> None:
    version = Version("walker", 7, 0, True, "", 1)
    options = WebOptions(socket_path="", descriptors=(), grpc_port=9102, tls_certificate="a", tls_key="b")
    found = retrieval_of(URL("https://[::1]:9080/models/x"), options, version, has_token=True)
    assert "--endpoint='grpcs://[::1]:9102'" in found.commands["Command line"]
    assert 'ModelRegistry("grpcs://[::1]:9102")' in found.commands["Python"]
    assert found.commands["curl"] == (
        'curl --fail -H "Authorization: Bearer $COGMENT_MODEL_REGISTRY_TOKEN" '
        '--cacert "$COGMENT_MODEL_REGISTRY_TLS_CA" '
        "--output walker-7.bin 'https://[::1]:9080/models/walker/versions/7/data'"
    )
    assert len(found.notes) == 2
    options = replace(options, tls_client_ca="c")
    found = retrieval_of(URL("https://localhost/"), options, version, has_token=False)
    assert '--key "$COGMENT_MODEL_REGISTRY_CLIENT_KEY"' in found.commands["curl"]
    assert "Authorization" not in found.commands["curl"]


def test_the_page_of_a_version_names_the_port_of_grpc(shared_http: HttpServer, registry: ModelRegistry) -> None:
    registry.store("walker", b"weights")
    page = _text(shared_http.http, "/models/walker/versions/1")
    assert page.count(shared_http.endpoint) == 2


def test_a_page_with_a_slash_at_the_end_redirects_to_the_page(http: Http, registry: ModelRegistry) -> None:
    registry.store("two legs", b"weights")
    answer = http.get("/models/two%20legs/versions/1/?a=b%20c", PAGE)
    assert answer.status == HTTPStatus.PERMANENT_REDIRECT
    assert answer.headers["location"] == "/models/two%20legs/versions/1?a=b%20c"
    assert http.get(answer.headers["location"], PAGE).status == HTTPStatus.OK
    assert http.get("//elsewhere.example/", PAGE).headers["location"] == "/elsewhere.example"
    assert http.get("/%5Celsewhere.example/", PAGE).headers["location"] == "/%5Celsewhere.example"
    assert http.get("/%5Celsewhere.example", PAGE).status == HTTPStatus.NOT_FOUND
    assert http.form("/models/two%20legs/versions/1/", "", PAGE).status == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize(
    ("accepted", "names"),
    [
        ("archived = true", []),
        ("metrics.return > 1 AND metrics.return < 9", [("metrics", "return")]),
        (
            '(tags."two words" = x OR tags:a/b) -user_data.x = y',
            [("tags", '"two words"'), ("tags", "a/b"), ("user_data", "x")],
        ),
        ("tags.note = \"metrics.none\" AND tags.b = 'tags.none'", [("tags", "note"), ("tags", "b")]),
        (" ".join(f"metrics.m{number} = 1" for number in range(9)), [("metrics", f"m{number}") for number in range(4)]),
    ],
)
def test_names_in_a_filter_are_found(accepted: str, names: list[tuple[str, str]]) -> None:
    assert names_in(accepted) == names


def test_a_name_in_a_filter_that_no_version_has_is_said(http: Http, registry: ModelRegistry) -> None:
    registry.store("walker", b"weights", metrics={"return": 1.0, "loss": 2.0}, tags={"run": "a"})
    none = "No version matches this filter."
    page = _text(http, "/models/walker?filter=metrics.retrun+%3E+0+AND+tags.%22my+tag%22+%3D+x+AND+tags.run+%3D+a")
    assert (
        f'{none} No version of this model has the metric retrun. No version of this model has the tag "my tag".' in page
    )
    assert "Metrics of the newest versions: loss, return." in page
    page = _text(http, "/models/walker?filter=metrics.return+%3E+5")
    assert none in page
    assert "No version of this model has" not in page
    assert "No version of this model has" not in _text(http, "/models/walker?filter=NOT+metrics.retrun+%3E+5")
