"""Signals that end a command while it runs a coroutine."""

import asyncio
import os
import signal

import pytest

from cogment_model_registry.cli.coroutines import run_coroutine, running_coroutines
from cogment_model_registry.cli.running import ending_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cancels_a_coroutine_which_can_still_clean_up(number: signal.Signals, code: int) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            seen.append("goes on to its next wait")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.to_thread(seen.append, "cleaned up")
            raise

    async def close() -> None:
        await asyncio.to_thread(seen.append, "closed")

    with ending_on_signals(), running_coroutines() as run:
        with pytest.raises(SystemExit) as caught:
            run(work())
        run(close())
    assert (caught.value.code, seen) == (code, ["goes on to its next wait", "cleaned up", "closed"])


def test_a_coroutine_returns_its_result_and_leaves_the_handlers_of_signals() -> None:
    async def answer() -> int:
        return 42

    before = signal.getsignal(signal.SIGTERM)
    assert run_coroutine(answer()) == 42
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_a_coroutine_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("for the test")

    with pytest.raises(ValueError, match="for the test"):
        run_coroutine(fail())


def test_a_coroutine_that_is_cancelled_without_a_signal_is_cancelled() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_coroutine(give_up())
