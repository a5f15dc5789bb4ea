"""Threads for what takes its time beside gRPC: hashing, files, and what the main thread lets others do."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from cogment_model_registry.errors import ClosedError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads:
    """A few threads, which a process waits for at its end; so what they do must end by itself.

    Args:
        name: What they are called.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(thread_name_prefix=name)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Let one of them do something.

        Raises:
            ClosedError: They were closed.
        """
        try:
            return self._executor.submit(work, *args, **kwargs)
        except RuntimeError as error:
            raise ClosedError from error

    def close(self) -> None:
        """Let them end; what waits for its turn still gets it."""
        self._executor.shutdown(wait=False)


def begin_apart(name: str, work: Callable[[], None]) -> None:
    """Do something on a thread of its own that no process waits for at its end: it may never be done."""
    threading.Thread(target=work, name=f"model registry client, {name}", daemon=True).start()
