"""What a history must show: each function checks one promise, and raises an AssertionError if it is broken."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.torture.several_servers.history import Effect, History, Kind, Operation, Outcome, Trouble

OBSERVATIONS = (Kind.LATEST, Kind.FIND, Kind.RETRIEVE, Kind.NEWS)
"""The operations whose answer shows that a version exists."""

STALE_SECONDS = 5
"""How long after an outage of PostgreSQL a server may still answer from what it knew before."""

HIDDEN_SECONDS = 20
"""How long after a crash of PostgreSQL servers may need to announce the versions that they have: some seconds, with
room for a busy machine."""

_NS = 10**9


def check_identities(history: History) -> None:
    """Check that a number is that of one upload, with the bytes of this upload, and that an upload has one number."""
    for model_id, each in history.by_model().items():
        hashes = {one.tag: one.data_hash for one in each.having(Kind.CREATE)}
        refused = {one.tag for one in each.having(Kind.CREATE) if one.outcome is Outcome.FAILED}
        numbers: dict[str, Operation] = {}
        tags: dict[int, Operation] = {}
        for one in each.having(Kind.CREATE, *OBSERVATIONS):
            if one.outcome is not Outcome.OK or not one.number or not one.tag:
                continue
            assert one.tag in hashes, f"nobody uploaded this to {model_id}: {one}"
            assert one.tag not in refused, f"an upload was refused, and is there: {one}"
            assert one.data_hash in ("", hashes[one.tag]), f"torn: {one}, and uploaded was {hashes[one.tag]}"
            known = numbers.setdefault(one.tag, one)
            assert known.number == one.number, f"one upload has two numbers: {known} and {one}"
            owner = tags.setdefault(one.number, one)
            assert owner.tag == one.tag, f"one number was given twice: {owner} and {one}"


def check_numbers(history: History) -> int:
    """Check that an upload has a higher number than all that were seen before it began; return how many were."""
    checked = 0
    for each in history.by_model().values():
        ends: list[tuple[int, int]] = []
        highest: Operation | None = None
        operations = each.having(Kind.CREATE, *OBSERVATIONS)
        for index, one in enumerate(operations):
            while ends and ends[0][0] < one.began_ns:
                seen = operations[heapq.heappop(ends)[1]]
                if highest is None or seen.number > highest.number:
                    highest = seen
            if one.outcome is not Outcome.OK or not one.number:
                continue
            if one.kind is Kind.CREATE:
                checked += 1
                assert highest is None or one.number > highest.number, f"{one} began after {highest} had ended"
            heapq.heappush(ends, (one.ended_ns, index))
    return checked


@dataclass
class Version:
    """What is known about a version.

    Attributes:
        number: Its number.
        began_ns: When its upload began.
        visible_ns: When it was seen first, or its upload was acknowledged.
        archived_ns: When it is known to be archived; None if it is not.
        deleting_ns: When its deletion began; None if nobody deleted it.
        deleted_ns: When its deletion was acknowledged; None if it was not.
    """

    number: int
    began_ns: int
    visible_ns: int
    archived_ns: int | None = None
    deleting_ns: int | None = None
    deleted_ns: int | None = None

    def is_certain(self, began_ns: int, ended_ns: int, troubles: Iterable[Trouble]) -> bool:
        """Return whether it was visible all the time between two moments."""
        if self.visible_ns >= began_ns or (self.deleting_ns is not None and self.deleting_ns <= ended_ns):
            return False
        if self.archived_ns is not None and self.archived_ns < began_ns:
            return True
        return not any(self._is_excused(began_ns, ended_ns, each) for each in troubles)

    def _is_excused(self, began_ns: int, ended_ns: int, trouble: Trouble) -> bool:
        """Return whether a fault explains that it was not visible between two moments."""
        if trouble.began_ns > ended_ns or trouble.ended_ns < self.began_ns:
            return False
        is_hidden = Effect.HIDES in trouble.effect and began_ns <= trouble.ended_ns + HIDDEN_SECONDS * _NS
        return is_hidden or Effect.LOSES in trouble.effect


@dataclass
class Versions:
    """The versions of a model that are known to exist or to have existed.

    Attributes:
        by_number: The versions.
    """

    by_number: dict[int, Version] = field(default_factory=dict)

    @classmethod
    def of(cls, history: History) -> "Versions":
        """Return the versions of the one model of a history."""
        versions = cls()
        uploads = {one.tag: one for one in history.having(Kind.CREATE)}
        for one in history.having(Kind.CREATE, *OBSERVATIONS):
            if one.outcome is Outcome.OK and one.number:
                upload = uploads.get(one.tag)
                versions._see(one, upload.began_ns if upload else one.began_ns)
        for one in history.having(Kind.PROMOTE, Kind.MOVE):
            promoted = versions.by_number.get(one.number)
            if promoted is not None and one.outcome is Outcome.OK:
                promoted.archived_ns = _first(promoted.archived_ns, one.ended_ns)
        for one in history.having(Kind.DELETE):
            deleted = versions.by_number.get(one.number)
            if deleted is not None and one.may_have_effect:
                deleted.deleting_ns = _first(deleted.deleting_ns, one.began_ns)
            if deleted is not None and one.outcome is Outcome.OK:
                deleted.deleted_ns = _first(deleted.deleted_ns, one.ended_ns)
        return versions

    def _see(self, one: Operation, began_ns: int) -> None:
        version = self.by_number.setdefault(one.number, Version(one.number, began_ns, one.ended_ns))
        version.began_ns = min(version.began_ns, began_ns)
        version.visible_ns = min(version.visible_ns, one.ended_ns)
        if one.archived:
            version.archived_ns = _first(version.archived_ns, one.ended_ns)

    def highest_certain(self, one: Operation, troubles: Iterable[Trouble]) -> int:
        """Return the highest number of a version that was visible during all of an operation; 0 if there is none."""
        numbers = sorted(self.by_number, reverse=True)
        certain = (each for each in numbers if self.by_number[each].is_certain(one.began_ns, one.ended_ns, troubles))
        return next(certain, 0)


def _first(known_ns: int | None, new_ns: int) -> int:
    return new_ns if known_ns is None else min(known_ns, new_ns)


def check_visibility(history: History) -> tuple[int, int]:
    """Check that each look at a model shows what was visible before it began, and nothing that was deleted.

    Returns:
        How many looks were compared, and how many of them showed an older state while PostgreSQL was away.
    """
    checked = stale = 0
    for each in history.by_model().values():
        versions = Versions.of(each)
        for one in each.having(Kind.LATEST, Kind.FIND, Kind.RETRIEVE):
            if one.outcome not in (Outcome.OK, Outcome.ABSENT):
                continue
            checked += 1
            if is_right(one, versions, each.excuses):
                continue
            # A server that cannot ask PostgreSQL knows nothing new; that is no reason to forget what is archived.
            assert one.kind is Kind.LATEST, _complaint(one, versions, each.excuses)
            assert _may_be_stale(one, each.excuses), _complaint(one, versions, each.excuses)
            stale += 1
    return checked, stale


def is_right(one: Operation, versions: Versions, troubles: Iterable[Trouble]) -> bool:
    """Return whether a look at a model shows what it has to show, and nothing else."""
    version = versions.by_number.get(one.number)
    if one.outcome is Outcome.ABSENT:
        return version is None or not version.is_certain(one.began_ns, one.ended_ns, troubles)
    if one.number and version is not None and version.deleted_ns is not None and version.deleted_ns < one.began_ns:
        return False
    return one.kind is not Kind.LATEST or one.number >= versions.highest_certain(one, troubles)


def _may_be_stale(one: Operation, troubles: Iterable[Trouble]) -> bool:
    return any(
        Effect.MAKES_STALE in trouble.effect
        and trouble.began_ns <= one.ended_ns
        and one.began_ns <= trouble.ended_ns + STALE_SECONDS * _NS
        for trouble in troubles
    )


def _complaint(one: Operation, versions: Versions, troubles: Iterable[Trouble]) -> str:
    highest = versions.highest_certain(one, troubles)
    parts = [f"{one} shows a state that cannot be", f"its version: {versions.by_number.get(one.number)}"]
    parts.append(f"the highest visible version: {versions.by_number.get(highest)}")
    return "; ".join([*parts, *map(str, troubles)])


def check_watchers(history: History) -> int:
    """Check that no watcher received a number twice, or a lower one, or a gap over what was there; return the news.

    A client that received no gap at all may have asked for the latest versions alone, so numbers may be missing.
    """
    news = 0
    for each in history.by_model().values():
        versions = Versions.of(each)
        last: dict[str, Operation] = {}
        for one in each.having(Kind.NEWS, Kind.GAP):
            before = last.get(one.client)
            end = max(before.number, before.last_number) if before else 0
            assert one.number > end, f"a watcher received {one} after {before}"
            last[one.client] = one
            news += 1
            for number in range(one.number, one.last_number + 1):
                version = versions.by_number.get(number)
                is_missing = version is not None and version.is_certain(one.began_ns, one.ended_ns, each.excuses)
                assert not is_missing, f"a watcher received the gap {one}, which hides {version}"
    return news


def check_all_news(history: History, clients: Iterable[str]) -> int:
    """Check that some watchers received each number, or a gap with it; return how many gaps there were."""
    wanted, gaps = {*clients}, 0
    for each in history.by_model().values():
        next_number: dict[str, int] = {}
        for one in each.having(Kind.NEWS, Kind.GAP):
            if one.client in wanted:
                expected = next_number.get(one.client, 1)
                assert one.number == expected, f"a watcher of every version received {one}; the next one is {expected}"
                next_number[one.client] = (one.last_number or one.number) + 1
                gaps += one.kind is Kind.GAP
    return gaps


def remaining(history: History, at_ns: int) -> set[int]:
    """Return the numbers of the one model of a history that must be visible at its end.

    Versions that a crash of PostgreSQL hid belong to them: the servers that have them have announced them by then.
    """
    lost = [trouble for trouble in history.excuses if Effect.LOSES in trouble.effect]
    versions = Versions.of(history).by_number.values()
    return {one.number for one in versions if one.is_certain(at_ns, at_ns, lost)}


def check_remaining(history: History, servers: Iterable[str], began_ns: int) -> int:
    """Check that each server has what must be there at the end; return the number of versions.

    Args:
        history: The history, with the retrievals from each server at the end.
        servers: The servers.
        began_ns: When these retrievals began.
    """
    count = 0
    for model_id, each in history.by_model().items():
        kept = remaining(each, began_ns)
        gone = {one.number for one in Versions.of(each).by_number.values() if one.deleted_ns is not None}
        count += len(kept)
        for server in servers:
            found = {
                one.number
                for one in each.having(Kind.RETRIEVE)
                if one.server == server and one.began_ns >= began_ns and one.outcome is Outcome.OK
            }
            assert not kept - found, f"{server} has lost versions of {model_id}: {sorted(kept - found)}"
            assert not gone & found, f"{server} has deleted versions of {model_id}: {sorted(gone & found)}"
    return count
