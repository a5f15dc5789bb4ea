"""A blocking client for the tests of the frameworks; its calls run on a thread, because the server uses this one."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.server.composition import Server

FRAMEWORK_SECONDS = 300.0
"""How long a process that loads a framework may take: a minute on a busy machine, for imports alone."""

on_slow_machines = pytest.mark.timeout(FRAMEWORK_SECONDS + 60)


@pytest.fixture
def registry(server: Server) -> Iterator[ModelRegistry]:
    """A client of `server`."""
    with ModelRegistry(f"grpc://127.0.0.1:{server.port}", progress=False) as client:
        yield client


async def on_thread(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Await a blocking call."""
    return await asyncio.to_thread(call, *arguments, **options)


def run_two(program: str, *arguments: str) -> list[str]:
    """Run a program in two processes at once, with their index and the arguments; return their outputs."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(index), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        results = [process.communicate(timeout=FRAMEWORK_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in results]
