"""How a process of ours ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

WOKEN = """
import os

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # the thread that wakes the loop goes on later than the loop

import asyncio
import obstore
from cogment_model_registry.system.ending import end_process
from obstore.store import MemoryStore

async def put():
    await obstore.put_async(MemoryStore(), "name", b"")

asyncio.run(put())
end_process(3)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return processes.run(sys.executable, "-c", program)


def test_threads_of_libraries_that_are_about_to_return_do_not_abort_the_process() -> None:
    assert [run(WOKEN).returncode for _ in range(5)] == [3] * 5


def test_what_was_printed_is_written() -> None:
    result = run("print('all', end=''); from cogment_model_registry.system.ending import end_process; end_process(0)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "all", "")


def test_streams_may_be_missing_or_closed() -> None:
    result = run(
        "import sys; sys.stdout.close(); sys.stderr = None; "
        "from cogment_model_registry.system.ending import end_process; end_process(4)"
    )
    assert result.returncode == 4


BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command", [[BIN / "cogment"], [BIN / "cogment-model-registry"], [sys.executable, "-m", "cogment_model_registry"]]
)
@pytest.mark.parametrize(("word", "code"), [("--version", 0), ("nothing", 2)])
def test_commands_end_so(command: list[str | Path], word: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(print, 'Python shuts down')")
    result = processes.run(*map(str, command), word, environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == code
    assert "Python shuts down" not in result.stdout
    assert result.stdout or result.stderr


def test_the_log_is_written_to_its_end() -> None:
    program = (
        "from cogment_model_registry.serving import logs; from cogment_model_registry.settings import Settings; "
        "from cogment_model_registry.system.ending import end_process; import logging; "
        "logs.configure(Settings()); [logging.info('line %d', each) for each in range(1000)]; end_process(0)"
    )
    assert "line 999" in run(program).stdout
