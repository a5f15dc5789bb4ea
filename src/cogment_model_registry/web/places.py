"""Places for what clients keep open, such as uploads and streams: bounded for all of them, and for each address."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from cogment_model_registry.records.addresses import network_of
from cogment_model_registry.web.errors import RefusedError

_THIS_HOST = network_of("127.0.0.1")


class Places:
    """A number of places, of which one address may take half, so that it shuts nobody else out.

    An IPv6 network of /64 counts as one address. This host may take all places: a proxy on it stands for many clients.

    Args:
        count: How many places there are.
        what: What takes them, in the plural.
        retry_seconds: When a client that got none may try again.
    """

    def __init__(self, count: int, what: str, retry_seconds: int) -> None:
        self._count = count
        self._what = what
        self._retry_seconds = retry_seconds
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._taken.total()

    @contextmanager
    def taken(self, address: str) -> Iterator[None]:
        """Return a context manager that takes a place for an address, and gives it back at its end.

        Raises:
            RefusedError: All places are taken, or the address has taken its half.
        """
        host = network_of(address)
        self._check(host)
        self._taken[host] += 1
        try:
            yield
        finally:
            self._taken[host] -= 1
            if not self._taken[host]:
                del self._taken[host]

    def _check(self, host: str) -> None:
        own_max = self._count if host == _THIS_HOST else self._count // 2
        if self._taken.total() >= self._count:
            message = f"{self._count} {self._what} are open"
        elif self._taken[host] >= own_max:
            message = f"{own_max} {self._what} from your address are open"
        else:
            return
        headers = {"Retry-After": str(self._retry_seconds)}
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"{message}; try again later", headers)
