"""Objects of a bucket of which some operations fail, and what tests of failures ask of a bucket."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from obstore.store import ObjectStore

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.objects import Objects, Written
from cogment_model_registry.storage.bucket.translation import ObjectExists

UNAVAILABLE = UnavailableError("the test lets the store fail")


class FaultyObjects(Objects):
    """Objects of which some operations fail: before they reach the store, or when their answer is lost.

    Attributes:
        refused: Returns whether an operation on a name fails before it reaches the store.
        unanswered: Returns whether an operation on a name is done, and fails nevertheless.
        stalled: The writes that did not reach the store, as the network may still have them.
    """

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "test://bucket")
        self.stalled: list[Callable[[], Awaitable[None]]] = []
        self.refused: Callable[[str, str], bool] = lambda _operation, _name: False
        self.unanswered: Callable[[str, str], bool] = lambda _operation, _name: False

    def fail_from(self, first: Callable[[str, str], bool], *, is_there: bool) -> None:
        """Fail from the first operation on for which a rule holds; `is_there` says whether that one is done."""
        is_down = False

        def fails(operation: str, name: str) -> bool:
            nonlocal is_down
            is_down = is_down or first(operation, name)
            return is_down

        if is_there:
            self.unanswered = fails
            self.refused = lambda _operation, _name: is_down
        else:
            self.refused = fails

    def recover(self) -> None:
        """Fail no more."""
        self.refused = self.unanswered = lambda _operation, _name: False

    async def deliver(self) -> int:
        """Let the store have what was stalled; return how many writes it refused."""
        refused = 0
        for write in self.stalled:
            try:
                await write()
            except ObjectExists:
                refused += 1
        self.stalled.clear()
        return refused

    def _fail(
        self,
        rule: Callable[[str, str], bool],
        operation: str,
        name: str,
        write: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        if rule(operation, name):
            if write is not None:
                self.stalled.append(write)
            self.failure = UNAVAILABLE.message
            raise UNAVAILABLE

    async def put(self, name: str, data: bytes) -> None:
        write = partial(super().put, name, data)
        self._fail(self.refused, "put", name, write)
        await write()
        self._fail(self.unanswered, "put", name)

    async def create(self, name: str, data: bytes) -> None:
        write = partial(super().create, name, data)
        self._fail(self.refused, "create", name, write)
        await write()
        self._fail(self.unanswered, "create", name)

    async def replace(self, name: str, data: bytes, written: Written) -> None:
        write = partial(super().replace, name, data, written)
        self._fail(self.refused, "replace", name, write)
        await write()
        self._fail(self.unanswered, "replace", name)

    async def find_written(self, name: str) -> Written | None:
        self._fail(self.refused, "get", name)
        return await super().find_written(name)

    async def get(self, name: str) -> bytes:
        self._fail(self.refused, "get", name)
        return await super().get(name)

    async def delete(self, names: Sequence[str]) -> None:
        write = partial(super().delete, names)
        for name in names:
            self._fail(self.refused, "delete", name, write)
        await write()


def is_record(operation: str, name: str) -> bool:
    return operation == "create" and name.startswith(layout.VERSIONS)


def once(rule: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Return a rule that holds for the first one for which another rule does."""
    held: list[str] = []

    def holds(operation: str, name: str) -> bool:
        if not rule(operation, name) or held:
            return False
        held.append(name)
        return True

    return holds


async def names_below(objects: Objects, *prefixes: str) -> list[str]:
    """Return the names of the objects below some prefixes, once nothing is left to do."""
    return [name for prefix in prefixes for name in await objects.all_names(prefix)]


async def gone(objects: Objects, *prefixes: str) -> bool:
    return not await names_below(objects, *prefixes)
