"""The checks of histories, on good and bad ones that were made by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.torture.several_servers import aliases, checks
from tests.torture.several_servers.history import (
    NOTHING,
    Effect,
    History,
    Kind,
    Operation,
    Outcome,
    Trouble,
    parse_operation,
    to_line,
)
from tests.torture.several_servers.live import LiveHistory
from tests.torture.several_servers.logs import complaints, is_removal
from tests.torture.several_servers.recovery import quartiles, recovery_ms

S = 10**9


def op(kind: Kind, began: float, ended: float, outcome: Outcome = Outcome.OK, **fields: Any) -> Operation:
    """Return an operation of some client on a model, with times in seconds."""
    defaults = {"client": "c", "model_id": "m"}
    return Operation(
        kind=kind, began_ns=int(began * S), ended_ns=int(ended * S), outcome=outcome, **{**defaults, **fields}
    )


def create(began: float, ended: float, number: int, outcome: Outcome = Outcome.OK, **fields: Any) -> Operation:
    defaults = {"tag": f"tag {began}", "data_hash": f"hash {began}"}
    return op(Kind.CREATE, began, ended, outcome, number=number, **{**defaults, **fields})


def latest(began: float, ended: float, number: int, **fields: Any) -> Operation:
    return op(Kind.LATEST, began, ended, number=number, **fields)


def find(began: float, ended: float, number: int, outcome: Outcome = Outcome.OK) -> Operation:
    return op(Kind.FIND, began, ended, outcome, number=number)


def delete(began: float, ended: float, number: int, outcome: Outcome = Outcome.OK) -> Operation:
    return op(Kind.DELETE, began, ended, outcome, number=number)


def news(at: float, number: int, client: str = "w") -> Operation:
    return op(Kind.NEWS, at, at, number=number, client=client)


def gap(at: float, first: int, last: int, client: str = "w") -> Operation:
    return op(Kind.GAP, at, at, number=first, last_number=last, client=client)


def trouble(began: float, ended: float, effect: Effect = NOTHING) -> Trouble:
    return Trouble("trouble", int(began * S), int(ended * S), effect)


def holds(check: Callable[[History], object], *operations: Operation, troubles: tuple[Trouble, ...] = ()) -> bool:
    """Return whether a check accepts a history."""
    try:
        check(History.of(operations, troubles))
    except AssertionError:
        return False
    return True


def test_an_upload_has_one_number_and_a_number_one_upload() -> None:
    first, again = create(0, 1, 1, tag="a", data_hash="A"), create(0, 5, 1, Outcome.UNKNOWN, tag="b", data_hash="B")
    assert holds(checks.check_identities, first, again, news(2, 1))
    seen = op(Kind.LATEST, 6, 7, number=2, tag="b", data_hash="B")
    assert holds(checks.check_identities, first, again, seen)
    assert not holds(checks.check_identities, first, again, seen, dataclasses.replace(seen, number=3))
    assert not holds(checks.check_identities, first, again, dataclasses.replace(seen, number=1))


def test_bytes_are_those_that_were_uploaded_under_the_tag() -> None:
    upload = create(0, 1, 1, tag="a", data_hash="A")
    assert holds(checks.check_identities, upload, op(Kind.RETRIEVE, 2, 3, number=1, tag="a", data_hash="A"))
    assert not holds(checks.check_identities, upload, op(Kind.RETRIEVE, 2, 3, number=1, tag="a", data_hash="B"))
    assert not holds(checks.check_identities, upload, op(Kind.RETRIEVE, 2, 3, number=2, tag="z", data_hash="A"))


def test_an_upload_that_was_refused_is_nowhere() -> None:
    refused = create(0, 1, 0, Outcome.FAILED, tag="a", data_hash="A")
    assert holds(checks.check_identities, refused)
    assert not holds(checks.check_identities, refused, op(Kind.LATEST, 2, 3, number=1, tag="a", data_hash="A"))


def test_numbers_increase_in_the_order_of_time_and_only_then() -> None:
    assert holds(checks.check_numbers, create(0, 1, 1), create(2, 3, 2))
    assert holds(checks.check_numbers, create(0, 5, 2), create(2, 3, 1))
    assert not holds(checks.check_numbers, create(0, 1, 2), create(2, 3, 1))
    assert not holds(checks.check_numbers, create(0, 1, 1), create(2, 3, 1))
    assert holds(checks.check_numbers, create(0, 1, 2, model_id="n"), create(2, 3, 1))


def test_a_number_that_was_seen_is_below_those_of_later_uploads() -> None:
    unknown = create(0, 1, 0, Outcome.UNKNOWN)
    assert holds(checks.check_numbers, unknown, create(2, 3, 1))
    assert not holds(checks.check_numbers, unknown, latest(1, 2, 5), create(3, 4, 5))
    assert not holds(checks.check_numbers, unknown, news(2, 5), create(3, 4, 4))
    assert holds(checks.check_numbers, unknown, news(3.5, 5), create(3, 4, 4))


def test_a_look_that_begins_after_an_upload_was_answered_sees_it() -> None:
    assert holds(checks.check_visibility, create(0, 2, 1), latest(1, 3, 0))
    assert holds(checks.check_visibility, create(0, 2, 1), latest(3, 4, 1))
    assert holds(checks.check_visibility, create(0, 2, 1), create(3, 9, 2), latest(4, 5, 2), latest(6, 7, 2))
    assert not holds(checks.check_visibility, create(0, 2, 1), latest(3, 4, 0))
    assert not holds(checks.check_visibility, create(0, 2, 1), find(3, 4, 1, Outcome.ABSENT))
    assert not holds(checks.check_visibility, create(0, 2, 1), create(3, 9, 2), latest(4, 5, 2), latest(6, 7, 1))


def test_what_one_server_showed_another_one_shows_too() -> None:
    unknown = create(0, 1, 0, Outcome.UNKNOWN)
    assert holds(checks.check_visibility, unknown, latest(2, 3, 1, server="a"), latest(2.5, 4, 0, server="b"))
    assert not holds(checks.check_visibility, unknown, latest(2, 3, 1, server="a"), latest(4, 5, 0, server="b"))
    assert not holds(checks.check_visibility, unknown, news(3, 1), latest(4, 5, 0, server="b"))


def test_a_deleted_version_may_disappear_when_its_deletion_begins_and_must_when_it_is_answered() -> None:
    upload = create(0, 1, 1)
    for outcome in (Outcome.OK, Outcome.UNKNOWN):
        assert holds(checks.check_visibility, upload, delete(2, 5, 1, outcome), latest(3, 4, 0), find(3, 4, 1))
    assert not holds(checks.check_visibility, upload, delete(2, 5, 1), find(6, 7, 1))
    assert not holds(checks.check_visibility, upload, delete(2, 5, 1), latest(6, 7, 1))
    assert holds(checks.check_visibility, upload, delete(2, 5, 1, Outcome.UNKNOWN), find(6, 7, 1))
    assert not holds(checks.check_visibility, upload, delete(2, 5, 1, Outcome.FAILED), latest(6, 7, 0))


def test_only_a_fault_that_loses_memory_excuses_a_transient_version_and_nothing_an_archived_one() -> None:
    absent = find(5, 6, 1, Outcome.ABSENT)
    crash = (trouble(2, 3, Effect.LOSES),)
    assert holds(checks.check_visibility, create(0, 1, 1), absent, latest(7, 8, 0), troubles=crash)
    assert not holds(checks.check_visibility, create(0, 1, 1), absent, troubles=(trouble(2, 3),))
    assert not holds(checks.check_visibility, create(4, 4.5, 1), absent, troubles=crash)
    assert not holds(checks.check_visibility, create(0, 1, 1, archived=True), absent, troubles=crash)
    promotion = op(Kind.PROMOTE, 1, 1.5, number=1)
    assert not holds(checks.check_visibility, create(0, 1, 1), promotion, absent, troubles=crash)
    alias = op(Kind.MOVE, 1, 1.5, number=1, expected=0, revision=1)
    assert not holds(checks.check_visibility, create(0, 1, 1), alias, absent, troubles=crash)


def test_a_crash_of_postgresql_hides_transient_versions_only_until_they_are_announced_again() -> None:
    crash = (trouble(2, 3, Effect.HIDES),)
    for at in (2.5, 4, 22):
        assert holds(checks.check_visibility, create(0, 1, 1), latest(at, at + 0.1, 0), troubles=crash)
    assert not holds(checks.check_visibility, create(0, 1, 1), latest(1.5, 1.6, 0), troubles=crash)
    assert not holds(checks.check_visibility, create(0, 1, 1), latest(24, 25, 0), troubles=crash)
    assert not holds(checks.check_visibility, create(3.5, 3.6, 1), latest(4, 5, 0), troubles=crash)


def test_while_postgresql_is_away_an_older_latest_version_is_counted_and_nothing_else_is_excused() -> None:
    away = (trouble(2, 5, Effect.MAKES_STALE),)
    stored = [create(0, 1, 1, archived=True), create(2, 3, 2, archived=True)]
    assert checks.check_visibility(History.of([*stored, latest(4, 5, 1)], away)) == (1, 1)
    assert not holds(checks.check_visibility, *stored, latest(4, 5, 1), troubles=(trouble(2, 5, Effect.LOSES),))
    assert not holds(checks.check_visibility, *stored, latest(11, 12, 1), troubles=away)
    assert not holds(checks.check_visibility, *stored, find(4, 5, 1, Outcome.ABSENT), troubles=away)


def test_a_watcher_receives_nothing_twice_and_never_goes_back() -> None:
    assert holds(checks.check_watchers, news(1, 1), news(2, 3), news(3, 2, "other"))
    assert not holds(checks.check_watchers, news(1, 1), news(2, 1))
    assert not holds(checks.check_watchers, news(1, 2), news(2, 1))
    assert not holds(checks.check_watchers, gap(1, 1, 3), news(2, 3))


def test_a_gap_hides_nothing_that_is_there() -> None:
    stored = create(0, 1, 1, archived=True)
    assert holds(checks.check_watchers, stored, gap(0.5, 1, 1))
    assert holds(checks.check_watchers, stored, delete(2, 3, 1), gap(4, 1, 1))
    assert not holds(checks.check_watchers, stored, gap(4, 1, 1))
    assert not holds(checks.check_watchers, create(0, 1, 1), gap(4, 1, 1))
    assert holds(checks.check_watchers, create(0, 1, 1), gap(4, 1, 1), troubles=(trouble(2, 3, Effect.LOSES),))


def test_a_watcher_of_every_version_receives_each_number_or_a_gap() -> None:
    def check(history: History) -> int:
        return checks.check_all_news(history, ["w"])

    assert holds(check, news(1, 1), gap(2, 2, 4), news(3, 5), news(1, 7, "other"))
    assert not holds(check, news(1, 1), news(3, 3))
    assert not holds(check, news(1, 2))
    assert check(History.of([gap(1, 1, 2), news(2, 3)])) == 1


def test_each_server_has_what_is_kept_and_nothing_that_was_deleted_at_the_end() -> None:
    def check(history: History) -> int:
        return checks.check_remaining(history, ["a", "b"], 10 * S)

    def end(number: int, server: str) -> Operation:
        return op(Kind.RETRIEVE, 11, 12, number=number, server=server)

    stored, transient = create(0, 1, 1, archived=True), create(0, 1, 2)
    lost = (trouble(2, 3, Effect.LOSES),)
    assert holds(check, stored, end(1, "a"), end(1, "b"))
    assert check(History.of([stored, transient, end(1, "a"), end(1, "b")], lost)) == 1
    assert not holds(check, stored, end(1, "a"))
    assert not holds(check, stored, end(1, "a"), troubles=lost)
    assert not holds(check, stored, end(1, "a"), op(Kind.RETRIEVE, 5, 6, number=1, server="b"))
    assert holds(check, stored, delete(2, 3, 1))
    assert not holds(check, stored, delete(2, 3, 1), end(1, "b"))
    assert holds(check, stored, delete(2, 3, 1, Outcome.UNKNOWN), end(1, "b"))
    assert not holds(check, transient)
    assert not holds(check, transient, troubles=(trouble(2, 3, Effect.HIDES),))
    assert not holds(check, transient, op(Kind.PROMOTE, 2, 3, number=2), troubles=lost)


def move(
    began: float, ended: float, number: int, expected: int, revision: int = 0, *, outcome: Outcome = Outcome.OK
) -> Operation:
    return op(Kind.MOVE, began, ended, outcome, number=number, expected=expected, revision=revision)


def alias(began: float, ended: float, number: int, revision: int) -> Operation:
    return op(Kind.READ_ALIAS, began, ended, number=number, revision=revision)


def test_an_alias_is_a_register_with_a_compare_and_set() -> None:
    first, second = move(0, 1, 7, 0, 1), move(2, 3, 8, 1, 4)
    assert holds(aliases.check_aliases, first, alias(1, 2, 7, 1), second, alias(4, 5, 8, 4))
    assert not holds(aliases.check_aliases, first, second, alias(4, 5, 7, 1))
    assert not holds(aliases.check_aliases, first, second, alias(4, 5, 8, 5))
    assert not holds(aliases.check_aliases, first, move(2, 3, 8, 0, 4))
    assert not holds(aliases.check_aliases, first, move(0, 1, 8, 0, 2))
    assert holds(aliases.check_aliases, first, move(0, 1, 8, 0, outcome=Outcome.CONFLICT))
    assert not holds(aliases.check_aliases, first, move(2, 3, 8, 1, outcome=Outcome.CONFLICT))
    assert not holds(aliases.check_aliases, first, second, move(6, 7, 9, 4, 4))


def test_a_move_of_unknown_outcome_may_show_up_later_but_not_after_another_one_won() -> None:
    first, unknown = move(0, 1, 7, 0, 1), move(2, 3, 8, 1, outcome=Outcome.UNKNOWN)
    assert holds(aliases.check_aliases, first, unknown, alias(4, 5, 7, 1))
    assert holds(aliases.check_aliases, first, unknown, alias(4, 5, 7, 1), alias(6, 7, 8, 2))
    assert holds(aliases.check_aliases, first, unknown, move(4, 5, 9, 2, 3), alias(6, 7, 9, 3))
    assert not holds(aliases.check_aliases, first, unknown, alias(4, 5, 8, 2), alias(6, 7, 7, 1))
    assert not holds(aliases.check_aliases, first, unknown, move(4, 5, 9, 1, 2), alias(6, 7, 8, 3))
    refused = dataclasses.replace(unknown, outcome=Outcome.FAILED)
    assert not holds(aliases.check_aliases, first, refused, alias(4, 5, 8, 2))


def test_recovery_counts_from_the_end_of_the_fault_for_clients_that_it_held_up() -> None:
    operations = [
        latest(0, 1, 1, client="held up"),
        op(Kind.LATEST, 3, 6, Outcome.UNKNOWN, client="held up"),
        latest(6, 12.5, 1, client="held up"),
        latest(13, 14, 1, client="held up"),
        latest(3, 9.5, 1, client="untouched"),
        latest(10, 11, 1, client="untouched"),
        latest(0, 1, 1, client="gone"),
        latest(20, 31, 1, client="gone"),
    ]
    history = History.of(operations)
    assert recovery_ms(history, trouble(2, 10), 30 * S) == {"held up": 2500}
    assert recovery_ms(history, trouble(2, 10), None) == {"held up": 2500, "gone": 21_000}
    assert quartiles([]) == (0, 0, 0, 0)
    assert quartiles([5]) == (5, 5, 5, 5)
    assert quartiles([4, 1, 2, 3, 100]) == (2, 3, 4, 100)


@pytest.mark.parametrize(
    "operation", [create(0, 1, 1, archived=True), move(2, 3, 8, 1, outcome=Outcome.CONFLICT), gap(1, 2, 3)]
)
def test_an_operation_is_written_and_read_back(operation: Operation) -> None:
    assert parse_operation(to_line(operation)) == operation


def test_a_history_is_read_while_it_is_written(tmp_path: Path) -> None:
    first, second = to_line(create(0, 1, 1)), to_line(op(Kind.MOVE, 1, 5, Outcome.FAILED, client="other"))
    path, live = tmp_path / "history", LiveHistory()
    path.write_text(first + second[:20])
    live.add(path)
    assert live.waiting(2 * S, 1) == ["c"]
    assert live.waiting(S, 2) == ["1 of 2"]
    with path.open("a") as file:
        file.write(second[20:] + to_line(op(Kind.MOVE, 6, 7, Outcome.CONFLICT, client="other")))
    assert live.waiting(2 * S, 2) == ["c"]
    assert [one.client for one in live.operations] == ["c", "other", "other"]
    assert live.answered_ns == {"c": S, "other": 7 * S}


def test_an_operation_shows_what_is_known_of_it() -> None:
    with pytest.raises(AssertionError, match="number=2 tag=tag 2 "):
        checks.check_numbers(History.of([create(0, 1, 2, tag="first"), create(2, 3, 2)]))


def test_the_logs_show_removed_leases_and_errors() -> None:
    removed = '{"event": "server gone", "level": "warning", "timestamp": "2026"}'
    usual = '{"event": "alias set", "level": "info", "timestamp": "2026"}'
    error = json.dumps(
        {
            "event": "call failed",
            "timestamp": "2026",
            "exception": [
                {"exc_type": "KeyError", "exc_value": "'x'", "frames": [{"filename": "a.py", "lineno": 7}]},
            ],
        }
    )
    assert [is_removal(line) for line in (removed, usual, error)] == [True, False, False]
    assert complaints([usual, removed, error, "Traceback"]) == [
        "2026 call failed ; KeyError: 'x' at a.py:7",
        "Traceback",
    ]
