"""Work whose first step is made at once."""

import asyncio

import pytest

from cogment_model_registry.system.tasks import begun


async def test_work_that_never_waits_is_done_at_once() -> None:
    async def work() -> int:
        return 1

    future = begun(work())
    assert future.done()
    assert await future == 1


async def test_work_that_waits_goes_on_by_itself() -> None:
    steps: list[str] = []
    news = asyncio.Event()

    async def work() -> str:
        steps.append("begun")
        await news.wait()
        steps.append("gone on")
        return "done"

    future = begun(work())
    assert steps == ["begun"]
    waiting = asyncio.ensure_future(asyncio.shield(future))
    await asyncio.sleep(0)
    waiting.cancel()
    news.set()
    assert await future == "done"
    assert steps == ["begun", "gone on"]


async def test_an_error_of_the_first_step_is_raised_at_once_and_a_later_one_by_the_future() -> None:
    async def work(*, waits: bool) -> None:
        if waits:
            await asyncio.sleep(0)
        raise LookupError("none")

    with pytest.raises(LookupError, match="none"):
        begun(work(waits=False))
    future = begun(work(waits=True))
    with pytest.raises(LookupError, match="none"):
        await future
