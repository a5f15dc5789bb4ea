"""Processes that are forked behave as those of a new Python."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import preloaded, run_cogment, server_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux processes are forked")


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["services", "model_registry", "--port=no"],
        ["archive", "verify", "missing"],
        ["client", "model_registry", "list_models"],
    ],
    ids=" ".join,
)
def test_a_forked_command_ends_as_one_of_a_new_python(words: list[str], tmp_path: Path) -> None:
    environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": "grpc://127.0.0.1:1"}
    forked, new = (
        run_cogment(*words, environment=environment, cwd=tmp_path, is_new=is_new) for is_new in (False, True)
    )
    assert forked.args != new.args
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)


def test_a_forked_server_has_its_own_files_and_ends_by_signals(tmp_path: Path) -> None:
    with server_process(tmp_path / "first") as first, server_process(tmp_path / "second") as second:
        for server, name in ((first, "first"), (second, "second")):
            process = psutil.Process(server.pid)
            archives = {Path(file.path).parent.name for file in process.open_files() if str(tmp_path) in file.path}
            assert archives == {name}
        first.signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        assert not first.is_running
        assert second.is_running
        assert second.stop() == 0


def test_what_python_reads_at_its_start_takes_a_new_one() -> None:
    for name in ("LC_ALL", "PYTHONUTF8", "HOME"):
        assert preloaded({name: "changed"}) is None
    variables = {"PYTHONDONTWRITEBYTECODE": "2"}
    with server_process(None, "--persistence_file=", service="directory", environment=variables) as server:
        assert isinstance(server._process, subprocess.Popen)
