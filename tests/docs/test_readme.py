"""The trainer, the actor and the session of the README run, and its first screen is short."""

import re
import subprocess
import sys
from pathlib import Path

from cogment_model_registry.client.endpoints import ENDPOINT_VARIABLE
from tests import pages
from tests.processes import START_SECONDS, clean_environment, server_process

README = "README.md"


def test_the_trainer_and_the_actor_run_together_and_then_the_deployment(tmp_path: Path) -> None:
    trainer, actor, deployment = pages.blocks(README, "python")
    with server_process(tmp_path / "archive") as server:
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", text.replace("localhost:9002", f"127.0.0.1:{server.port}")],
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for text in (actor, trainer)
        ]
        try:
            (played, actor_errors), (printed, trainer_errors) = [
                process.communicate(timeout=START_SECONDS) for process in processes
            ]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], actor_errors + trainer_errors
        assert (tmp_path / "archive/walker/walker-v000020.data").read_bytes() == b"weights after step 20"
        deployed = run_here(deployment, server.port)
    assert printed == ""
    assert deployed == "weights after step 20\n"
    lines = re.findall(r"^episode (\d) with version (\d+): weights after step (\d+)$", played, re.MULTILINE)
    assert [int(episode) for episode, _, _ in lines] == [0, 1, 2, 3, 4]
    assert all(step == version for _, version, step in lines)


def run_here(text: str, port: int) -> str:
    """Return the output of a program of the page."""
    command = [sys.executable, "-W", "error", "-c", text.replace("localhost:9002", f"127.0.0.1:{port}")]
    return subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=True, timeout=START_SECONDS
    ).stdout


def test_the_session_prints_what_the_readme_shows(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        environment = {ENDPOINT_VARIABLE: f"grpc://127.0.0.1:{server.port}"}  # the address of the test's server
        pages.assert_as_documented(README, tmp_path, {}, START_SECONDS, environment)
    assert not re.search(r"COGMENT_|--endpoint", "".join(pages.blocks(README, "console")))


def test_the_readme_is_short() -> None:
    assert len(pages.text_of(README).splitlines()) <= 140
