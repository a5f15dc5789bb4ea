"""The programs that tests start end with the process of the tests, even if that is killed."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.object_store import program as object_store_program
from tests.postgres import program as postgres_program
from tests.processes import GuardedProcess, started
from tests.waiting import wait_until

_SCRIPT = """
import pathlib, sys, threading
from tests.object_store import S3Server
from tests.postgres import PostgresServer

def start():
    for server in servers:
        server.start()

postgres, place = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
servers = [PostgresServer(postgres), S3Server(place)]
# The programs must outlive the thread that has started them.
thread = threading.Thread(target=start)
thread.start()
thread.join()
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def open_directory() -> Iterator[str]:
    """A directory that the user of PostgreSQL may enter, unlike those of tests."""
    with tempfile.TemporaryDirectory(prefix="guarded-", ignore_cleanup_errors=True) as place:
        yield place


@pytest.mark.parametrize("is_guardian_killed", [False, True])
def test_postgresql_and_the_object_store_end_when_the_tests_are_killed(
    tmp_path: Path, open_directory: str, is_guardian_killed: bool
) -> None:
    object_store_program()
    postgres_program("postgres")
    with started(_SCRIPT, open_directory, str(tmp_path)) as process:
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        below = psutil.Process(process.pid).children(recursive=True)
        names = {each.name() for each in below}
        assert {"postgres", "weed"} <= names
        if is_guardian_killed:
            for guardian in psutil.Process(process.pid).children():
                guardian.kill()
        else:
            process.kill()
        wait_until(lambda: not any(map(_is_running, below)), lambda: [each for each in below if _is_running(each)])
        process.kill()


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_guarded_program_is_stopped_and_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'echo stopped; exit' TERM; echo started; while :; do sleep 0.1; done"
    for end, output in ((GuardedProcess.stop, "started\nstopped\n"), (GuardedProcess.end, "started\n")):
        log.unlink(missing_ok=True)
        process = GuardedProcess(["/bin/sh", "-c", script], signal.SIGKILL, log, dict(os.environ))
        wait_until(log.read_text)
        end(process)
        assert not process.is_running
        assert log.read_text() == output
