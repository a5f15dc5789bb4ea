"""Reports of a tracked model's consumer, made in the background: what it runs whenever that changes, and a heartbeat.

Nothing that goes wrong with a report disturbs what is tracked: it is tried again, and said at the level debug. Servers
without the service get one report a minute, since they may be replaced by one that has it.
"""

import asyncio
import logging
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace

from cogment_model_registry.client.blocking_backend import BlockingBackend, StoppedError, run
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline
from cogment_model_registry.client.lifecycle_calls import LifecycleCalls
from cogment_model_registry.errors import ClosedError, LimitedError, ModelRegistryError, WrongServerError
from cogment_model_registry.records.consumers import ERROR_MAX_BYTES, Consumer, State

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 5.0
"""How long a report may take."""

_AGAIN_SECONDS = 1.0
"""How long to wait after one that failed."""

_UNSERVED_SECONDS = 60.0
"""How long to wait where the server lacks the service."""

_LEAVE_SECONDS = 1.0
"""How long the last report may take, with which a consumer says that it is gone."""


class Reporter:
    """Reports a consumer until it is stopped.

    Args:
        report: The first report: that it loads.

    Attributes:
        consumer: The consumer as the registry answered last; None until it did.
    """

    def __init__(self, report: Consumer) -> None:
        self._report = replace(report, state="loading")
        self._news: Future[None] = Future()
        self.consumer: Consumer | None = None

    def note(self, state: State, *, version_number: int | None = None, error: object = "") -> None:
        """Report a new state soon.

        Args:
            state: The state.
            version_number: The version that it runs now; None for the same as before.
            error: Why it failed, or an empty text.
        """
        number = self._report.version_number if version_number is None else version_number
        self._report = replace(self._report, state=state, version_number=number, error=_cut(error))
        self._report_soon()

    def _report_soon(self) -> None:
        with suppress(InvalidStateError):  # the heartbeat has just given up waiting for it
            if not self._news.done():
                self._news.set_result(None)

    async def run(self, calls: Calls) -> None:
        """Report until the backend of the calls is stopped, or the task cancelled.

        Each server knows the consumers that report to it, so one to which the calls move gets a report at once.
        """
        calls.connection.on_moved.add(self._report_soon)
        try:
            while True:
                self._news = Future()
                seconds = await self._send(calls)
                with suppress(TimeoutError, asyncio.TimeoutError):  # which are two before Python 3.11
                    await calls.backend.wait(self._news, seconds)
        finally:
            calls.connection.on_moved.discard(self._report_soon)

    async def _send(self, calls: Calls) -> float:
        """Report once, and return how long to wait until the next time."""
        heartbeat_seconds = self._report.ttl_seconds / 3
        once = LifecycleCalls(calls.without_retries(), Deadline(_REPORT_SECONDS))
        try:
            self.consumer = await once.report_consumer(self._report)
        except ClosedError:
            raise
        except ModelRegistryError as error:
            _log.debug("consumer not reported: %s", error)
            if isinstance(error.__cause__, WrongServerError):
                return _UNSERVED_SECONDS
            if isinstance(error, LimitedError):
                return max(error.retry_after_seconds, _AGAIN_SECONDS)
            return min(heartbeat_seconds, _AGAIN_SECONDS)
        return heartbeat_seconds

    async def leave(self, calls: Calls) -> None:
        """Say that the consumer is gone, if the registry knows it."""
        if self.consumer is None:
            return
        once = LifecycleCalls(calls.without_retries(), Deadline(_LEAVE_SECONDS))
        with suppress(ModelRegistryError, StoppedError):
            self.consumer = await once.report_consumer(replace(self._report, state="gone"))


class ThreadReporter(Reporter):
    """Reports on a thread.

    Args:
        report: The first report.
        calls: Makes calls.
        within: The backend of the client.
    """

    def __init__(self, report: Consumer, calls: Calls, within: BlockingBackend) -> None:
        super().__init__(report)
        self._calls = calls
        self._within = within
        self._backend = BlockingBackend(within=within)
        self._thread = threading.Thread(
            target=self._work, name=f"reporting {report.consumer_id} of {report.model_id}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _work(self) -> None:
        with suppress(StoppedError, ClosedError):
            run(self.run(self._calls.on(self._backend)))

    def stop(self) -> None:
        """End, and say that the consumer is gone."""
        self._backend.stop()
        self._thread.join()
        run(self.leave(self._calls.on(BlockingBackend(within=self._within))))


class AppliedReporter(ThreadReporter):
    """Reports a version as active only when it was applied, not when it is at hand."""

    def note(self, state: State, *, version_number: int | None = None, error: object = "") -> None:
        """Report a new state soon, unless it says that a version is active, or that one is which never was."""
        if state != "active" or (version_number is None and self._report.version_number):
            super().note(state, version_number=version_number, error=error)

    def note_applied(self, version_number: int) -> None:
        """Report a version as active."""
        super().note("active", version_number=version_number)


class TaskReporter(Reporter):
    """Reports in a task.

    Args:
        report: The first report.
        calls: Makes calls.
    """

    def __init__(self, report: Consumer, calls: Calls) -> None:
        super().__init__(report)
        self._calls = calls
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._work(), name=f"reporting {self._report.consumer_id}")

    async def _work(self) -> None:
        with suppress(StoppedError, ClosedError):
            await self.run(self._calls)

    async def stop(self) -> None:
        """End, and say that the consumer is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            await self.leave(self._calls)


def _cut(error: object) -> str:
    """Return an error as a text that a report may have."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return text.encode(errors="replace")[:ERROR_MAX_BYTES].decode(errors="ignore")
