"""Work that fails as nobody expects."""

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def failing_twice(work: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Return a function whose first two calls raise an error of a bug, and whose others do the work."""
    failures = iter([ValueError("a bug"), ValueError("a bug")])

    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for failure in failures:
            raise failure
        return await work(*args, **kwargs)

    return run
