"""Reading the files of an audit log from their ends: all lines once, newest first, whatever the pages and blocks."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.records.timestamps import format_timestamp
from cogment_model_registry.server import audit_files
from cogment_model_registry.server.audit_files import Place, find_changes

DAY_NS = 86_400 * 10**9
START_NS = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp()) * 10**9


def line(number: int, time_ns: int = START_NS, model_id: str = "m", padding: str = "", alias: str = "") -> bytes:
    """Return the line of a change."""
    fields: dict[str, object] = {"change": "version created", "model_id": model_id, "version_number": number}
    fields |= {**({"alias": alias} if alias else {}), "before": None}
    who = {"call": "CreateVersion", "caller": "ci", "caller_kind": "token", "peer": "ipv4:127.0.0.1:1"}
    after = {"user_data": {"x": padding}}
    return json.dumps(
        {"time": format_timestamp(time_ns), **fields, "after": after, **who}, separators=(",", ":")
    ).encode()


def write(directory: Path, day: int, data: bytes) -> None:
    """Write the file of a day."""
    (directory / f"audit_{datetime(2026, 11, 22, tzinfo=UTC).date() + timedelta(days=day)}.jsonl").write_bytes(data)


def all_pages(
    directory: Path, limit: int = 100, since_ns: int = 0, max_bytes: int = 2**20
) -> tuple[list[HistoryEntry], int]:
    """Return the changes of all pages, and how many pages there were."""
    entries: list[HistoryEntry] = []
    place: Place | None = None
    pages = 0
    while True:
        pages += 1
        found = find_changes(str(directory), "m", since_ns=since_ns, start=place, limit=limit, max_bytes=max_bytes)
        assert len(found.entries) <= limit
        entries += found.entries
        place = found.next
        if place is None:
            return entries, pages
        assert place.is_sound


def numbers(entries: list[HistoryEntry]) -> list[int]:
    return [entry.version_number for entry in entries]


CHANGES = st.tuples(st.sampled_from(["m", "other", "m2"]), st.integers(0, 300))


@given(
    days=st.lists(st.lists(CHANGES, max_size=8), max_size=4),
    bounds=st.tuples(st.integers(1, 5), st.integers(1, 500), st.integers(1, 2000), st.integers(1, 1000)),
)
def test_all_pages_have_each_change_once_newest_first(
    tmp_path_factory: pytest.TempPathFactory,
    days: list[list[tuple[str, int]]],
    bounds: tuple[int, int, int, int],
) -> None:
    limit, block_bytes, searched_bytes, max_bytes = bounds
    directory = tmp_path_factory.mktemp("audit")
    expected, number = [], 0
    for day, changes in enumerate(days):
        lines = []
        for model_id, padding in changes:
            number += 1
            lines.append(line(number, START_NS + day * DAY_NS + number, model_id, "x" * padding))
            expected += [number] if model_id == "m" else []
        write(directory, day, b"".join(b"%s\n" % each for each in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_files, "_BLOCK_BYTES", block_bytes)
        patch.setattr(audit_files, "_SEARCHED_MAX_BYTES", searched_bytes)
        entries, _ = all_pages(directory, limit, max_bytes=max_bytes)
    assert numbers(entries) == expected[::-1]


@pytest.mark.parametrize("block_bytes", [1, 7, 100, 2**18])
def test_what_is_no_whole_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(audit_files, "_BLOCK_BYTES", block_bytes)
    malformed = [b"", b"\0" * 50, b'{"model_id":"m"}', b'["model_id":"m"', b'"model_id":"m"', line(9)[:-5], b"\xff\xfe"]
    malformed.append(line(9).replace(b'"m"', b'"x"', 1).replace(b'"before"', b'"model_id":"m","before"')[:-1])
    write(tmp_path, 0, b"\n".join([line(1), *malformed, line(2)]) + b"\n" + line(3)[:-1])
    write(tmp_path, 1, line(4)[:20])  # not even one whole line
    write(tmp_path, 2, b"")
    (tmp_path / "audit_2026-11-30.jsonl.gz").write_bytes(line(5) + b"\n")
    (tmp_path / "lock").write_bytes(line(6) + b"\n")
    assert numbers(all_pages(tmp_path)[0]) == [2, 1]


def test_the_changes_of_one_alias_are_found_among_others(tmp_path: Path) -> None:
    write(tmp_path, 0, b"%s\n" % line(1, alias="best é"))
    others = [
        line(2),
        line(3, alias="best"),
        line(4, model_id="other", alias="best é"),
        line(5, padding='"alias":"best"'),
    ]
    write(
        tmp_path, 1, b"".join(b"%s\n" % each for each in [*others, line(6, alias="best é"), line(7, alias="best éé")])
    )
    found = find_changes(str(tmp_path), "m", alias="best é", since_ns=0, start=None, limit=9, max_bytes=1000)
    assert numbers(found.entries) == [6, 1]
    found = find_changes(str(tmp_path), "m", alias="best", since_ns=0, start=None, limit=9, max_bytes=1000)
    assert numbers(found.entries) == [3]
    assert numbers(all_pages(tmp_path)[0]) == [7, 6, 5, 3, 2, 1]


def test_a_page_begins_where_the_last_one_ended_also_when_lines_came_or_files_went_since(tmp_path: Path) -> None:
    write(tmp_path, 0, line(1) + b"\n" + line(2) + b"\n")
    write(tmp_path, 1, line(3) + b"\n" + line(4) + b"\n")
    first = find_changes(str(tmp_path), "m", since_ns=0, start=None, limit=1, max_bytes=1000)
    assert numbers(first.entries) == [4]
    with open(tmp_path / "audit_2026-11-23.jsonl", "ab") as file:
        file.write(line(5) + b"\n")
    second = find_changes(str(tmp_path), "m", since_ns=0, start=first.next, limit=1, max_bytes=1000)
    assert numbers(second.entries) == [3]
    (tmp_path / "audit_2026-11-23.jsonl").rename(tmp_path / "old")
    third = find_changes(str(tmp_path), "m", since_ns=0, start=second.next, limit=9, max_bytes=1000)
    assert numbers(third.entries) == [2, 1]


def test_only_changes_since_a_time_are_found_and_older_files_are_not_read(tmp_path: Path) -> None:
    for day in range(4):
        write(tmp_path, day, line(day, START_NS + day * DAY_NS) + b"\n")
    for day in range(4):
        assert numbers(all_pages(tmp_path, since_ns=START_NS + day * DAY_NS)[0]) == [3, 2, 1, 0][: 4 - day]
    (tmp_path / "audit_2026-11-22.jsonl").unlink()
    (tmp_path / "audit_2026-11-22.jsonl").mkdir()  # reading it would fail
    assert numbers(all_pages(tmp_path, since_ns=START_NS + 2 * DAY_NS)[0]) == [3, 2]


@pytest.mark.parametrize("name", ["../audit_2026-11-22.jsonl", "audit_2026-11-22.jsonl/x", "lock", "audit_.jsonl", ""])
def test_a_place_is_a_file_of_the_log_and_nothing_else(name: str) -> None:
    assert not Place(name, 0).is_sound
    assert not Place("audit_2026-11-22.jsonl", -1).is_sound
    assert Place("audit_2026-11-22.jsonl", 5).is_sound
