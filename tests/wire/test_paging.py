"""Handles and pages: every entry is listed once, whatever the size of pages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError, TooLargeError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.convert import encode_version
from cogment_model_registry.wire.paging import PAGE_MAX_BYTES, ExplicitHandle, Page, cut_handle, parse_handle


@pytest.mark.parametrize(
    ("handle", "number"), [("", 0), ("0", 0), ("7", 7), ("007", 7), ("0" * 50 + "7", 7), ("4294967296", 2**32)]
)
def test_a_handle_is_a_decimal_number(handle: str, number: int) -> None:
    assert parse_handle(handle) == number


def test_a_handle_of_any_length_may_be_past_the_end() -> None:
    assert parse_handle("9" * 10_000) >= 2**64


@pytest.mark.parametrize("handle", ["-1", "+1", " 1", "1 ", "1_0", "0x1", "1.0", "a", "٣", "²", "1\n", "@", "@1"])
def test_a_malformed_handle_is_refused(handle: str) -> None:
    with pytest.raises(InvalidError):
        parse_handle(handle)


@given(st.text(max_size=8))
def test_a_handle_is_accepted_exactly_when_it_has_only_digits(handle: str) -> None:
    try:
        parse_handle(handle)
    except InvalidError:
        assert not re.fullmatch("[0-9]*", handle)
    else:
        assert re.fullmatch("[0-9]*", handle)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 5))
def test_an_explicit_list_is_paged_in_its_order_with_its_duplicates(numbers: list[int], count: int) -> None:
    listed: list[int] = []
    handle = ""
    for _ in range(len(numbers) + 1):
        start = ExplicitHandle.parse(handle).start(numbers)
        page = numbers[start : start + count]
        if not page:
            break
        listed += page
        handle = cut_handle(start + len(page)) if start + len(page) < len(numbers) else str(page[-1] + 1)
    assert listed == numbers


def test_a_number_as_handle_continues_after_the_number_before_it() -> None:
    assert ExplicitHandle.parse("3").start([1, 2, 3, 4]) == 2
    assert ExplicitHandle.parse("3").start([1, 4, 5]) == 1
    assert ExplicitHandle.parse("9").start([1, 4, 5]) == 3
    assert ExplicitHandle.parse("@9").start([1, 4, 5]) == 3


def test_a_page_without_a_count_ends_at_its_size_but_is_never_empty() -> None:
    page = Page(0, 1000)
    assert page.extend([bytes(2000), b"x"]) == 1
    page = Page(0, 1000)
    assert page.extend(bytes(90) for _ in range(100)) == 10
    assert len(page.reply("11")) <= 1000


def test_a_page_with_a_count_is_never_shorter() -> None:
    page = Page(5, 1000)
    assert page.extend(bytes(5000) for _ in range(9)) == 5
    assert page.missing == 0


def test_a_page_that_cannot_be_sent_is_refused() -> None:
    page = Page(1000, 1000)
    with pytest.raises(TooLargeError):
        page.extend(bytes(PAGE_MAX_BYTES // 10) for _ in range(11))


def test_a_reply_is_what_protobuf_reads() -> None:
    versions = [VersionInfo("m", number, 1, True, "", 5, {"key": "yes"}) for number in (1, 2)]
    page = Page(0, 1000)
    page.extend(map(encode_version, versions))
    infos = [
        m.ModelVersionInfo(
            model_id="m",
            version_number=number,
            creation_timestamp=1,
            archived=True,
            data_size=5,
            user_data={"key": "yes"},
        )
        for number in (1, 2)
    ]
    reply = m.RetrieveVersionInfosReply(version_infos=infos, next_version_handle="3")
    assert m.RetrieveVersionInfosReply.FromString(page.reply("3")) == reply
