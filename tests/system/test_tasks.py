"""Work whose first step runs immediately."""

import asyncio

import pytest

from cogment_model_registry.system.tasks import begun, run_without_task


async def test_work_that_never_waits_finishes_immediately() -> None:
    async def work() -> int:
        return 1

    future = begun(work())
    assert future.done()
    assert await future == 1


async def test_work_that_waits_continues_in_the_background() -> None:
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


async def test_work_without_a_task_runs_its_first_step_immediately_and_reports_its_end() -> None:
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    second: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    steps: list[str] = []
    over: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        steps.append("begun")
        steps.append(await first)
        await second

    run_without_task(work(), over.set_result)
    assert steps == ["begun"]
    first.set_result("gone on")
    second.set_exception(ValueError("gone wrong"))
    error = await over
    assert steps == ["begun", "gone on"]
    assert str(error) == "gone wrong"


async def test_work_without_a_task_that_never_waits_finishes_immediately() -> None:
    outcomes: list[BaseException | None] = []

    async def work(error: Exception | None = None) -> None:
        if error:
            raise error

    failure = ValueError()
    run_without_task(work(), outcomes.append)
    run_without_task(work(failure), outcomes.append)
    assert outcomes == [None, failure]
