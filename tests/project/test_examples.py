"""The examples do what their page says: each runs as a process with its own server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest

from cogment_model_registry import ModelRegistry, VersionInfo
from cogment_model_registry import numpy as tensors
from tests.processes import START_SECONDS, clean_environment, run, server_process
from tests.waiting import wait_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TRAIN = EXAMPLES / "cartpole/train.py"
EVALUATE = EXAMPLES / "cartpole/evaluate.py"
DEPLOY = EXAMPLES / "deploy.py"

WEIGHTS = {
    "hidden.weight": np.eye(4, dtype=np.float32),
    "hidden.bias": np.zeros(4, np.float32),
    "output.weight": np.array([[0, 0, -1, 0], [0, 0, 1, 0]], np.float32),
    "output.bias": np.zeros(2, np.float32),
}
"""A policy that pushes to the side where the pole leans."""

LEANING_RIGHT = [0.0, 0.0, 0.1, 0.0]


@contextmanager
def started(script: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Return a context manager for an example in its own process session, which is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=clean_environment(),
    )
    with process:
        try:
            yield process
        finally:
            for each in family(process):
                each.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return a running process, and those that it started."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for_line(output: IO[str] | None, pattern: str) -> re.Match[str]:
    """Wait for the first line that matches, and return the match."""
    assert output
    lines = []
    for line in output:
        if match := re.search(pattern, line):
            return match
        lines.append(line)
    raise AssertionError(f"no line with {pattern!r}, but: {''.join(lines)}")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a server."""
    with server_process(tmp_path / "archive") as server:
        yield server.port


@pytest.fixture
def registry(port: int) -> Iterator[ModelRegistry]:
    """A client of it."""
    with ModelRegistry(f"grpc://127.0.0.1:{port}", progress=False) as client:
        yield client


def train(port: int, *arguments: str) -> str:
    """Run a short training, and return what it printed."""
    command = [sys.executable, str(TRAIN), f"--endpoint=grpc://127.0.0.1:{port}", *arguments]
    result = run(*command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr
    return result.stdout


def evaluate(port: int, *arguments: str) -> str:
    """Evaluate versions, and return what it printed."""
    result = run(sys.executable, str(EVALUATE), f"--endpoint=grpc://127.0.0.1:{port}", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr
    return result.stdout


def test_a_training_publishes_each_update_with_its_return(port: int, registry: ModelRegistry, tmp_path: Path) -> None:
    plot = tmp_path / "returns.svg"
    tensors.publish(registry, "cartpole", WEIGHTS)
    evaluate(port, "--versions=1")  # the plot of the training shows what was promoted
    output = train(port, "--updates=15", "--episodes=4", "--actors=2", f"--plot={plot}")
    first, *versions = registry.find_versions("cartpole", "version_number > 1")
    assert (first.user_data["step"], first.metrics) == ("0", {})
    assert len(versions) == 15
    steps = [int(version.user_data["step"]) for version in versions]
    assert steps == sorted(steps)
    assert all(version.metrics["training_return"] > 1 for version in versions)
    assert not any(version.archived for version in versions)
    used = {int(number) for pair in re.findall(r"versions (\d+) to (\d+)", output) for number in pair}
    assert len(used) > 1, "actors kept to one version"
    assert re.search(r"production is version 1, with return \d+", output)
    assert all(text in plot.read_text() for text in ("version number", "promoted versions", ">production<"))


def test_evaluators_promote_better_versions_and_move_the_alias_to_the_best(port: int, registry: ModelRegistry) -> None:
    opposite = {**WEIGHTS, "output.weight": -WEIGHTS["output.weight"]}
    for weights, deployed in ((opposite, 1), (WEIGHTS, 2), (opposite, 2), (WEIGHTS, 2)):
        published = tensors.publish(registry, "cartpole", weights)
        output = evaluate(port, "--versions=1", "--episodes=3")
        assert f"version {published.number}: return" in output
        assert (f"version {published.number} is in production" in output) == (published.number == deployed)
        assert registry.aliases("cartpole")["production"].version_number == deployed
    versions = registry.find_versions("cartpole")
    assert [version.archived for version in versions] == [True, True, False, False]
    returns = [version.metrics["return"] for version in versions]
    assert returns[1] == returns[3] > returns[0] + 5
    assert returns[0] == returns[2]


def test_an_evaluator_waits_for_the_model_and_ctrl_c_ends_it(port: int, registry: ModelRegistry) -> None:
    with started(EVALUATE, f"--endpoint=grpc://127.0.0.1:{port}", "--episodes=1") as process:
        wait_for_line(process.stdout, "waiting: .*does not exist")
        tensors.publish(registry, "cartpole", WEIGHTS)
        wait_for_line(process.stdout, "version 1 is in production")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout
        assert process.stdout.read() == "stopped\n"
        assert process.wait(START_SECONDS) == 0


def test_a_training_without_a_server_starts_one_and_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    plot = tmp_path / "returns.png"
    with started(TRAIN, "--updates=100000", "--actors=2", f"--plot={plot}") as process:
        model_id, endpoint = wait_for_line(process.stdout, r"training (\S+) with the registry at (\S+)").groups()
        wait_for_line(process.stdout, r"actor 2: begins with version")
        with ModelRegistry(endpoint) as registry:  # an update was learned, so there is something to plot
            wait_until(lambda: registry.list_versions(model_id)[-1].number > 1)
        all_processes = family(process)
        assert len(all_processes) >= 1 + 2 + 1
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout
        rest = process.stdout.read()
        assert process.wait(START_SECONDS) == 130
        assert "interrupted" in rest
        assert "Traceback" not in rest
        _, alive = psutil.wait_procs(all_processes, START_SECONDS)
        assert not alive
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(120)  # four programs start in sequence, and a busy machine takes seconds for each
def test_actors_report_stale_weights_and_the_training_outlives_a_restart(tmp_path: Path) -> None:
    archive_dir = tmp_path / "archive"
    with server_process(archive_dir) as server:
        endpoint = f"--endpoint=grpc://127.0.0.1:{server.port}"
        with started(TRAIN, endpoint, "--updates=100000", "--actors=1", "--episodes=2") as process:
            wait_for_line(process.stdout, r"actor 1: begins with version \d+")
            with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
                last = registry.get_version("cartpole").number
            server.stop()
            wait_for_line(process.stdout, r"actor 1: the weights may be stale: .+")
            with server_process(archive_dir, f"--port={server.port}"):
                wait_for_line(process.stdout, r"actor 1: the weights are up to date again")
                with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
                    later = registry.watch("cartpole", after=last + 10)
                    assert next(later).number > last + 10
                process.terminate()
                assert process.wait(START_SECONDS) == 130


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=START_SECONDS) as reply:
        return json.load(reply)


def post(url: str, observation: object) -> Any:
    request = urllib.request.Request(url, json.dumps(observation).encode())
    with urllib.request.urlopen(request, timeout=START_SECONDS) as reply:
        return json.load(reply)


@pytest.fixture
def deployment(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A deployment of the model `policy`."""
    file = f"--file={tmp_path / 'policy.safetensors'}"
    with started(DEPLOY, f"--endpoint=grpc://127.0.0.1:{port}", "--model=policy", "--port=0", file) as process:
        yield process


def deployed(registry: ModelRegistry, version: VersionInfo) -> VersionInfo:
    """Point the alias of the deployment to a version."""
    registry.set_alias("policy", "production", version)
    return version


def test_a_deployment_waits_for_its_alias(
    deployment: subprocess.Popen[str], registry: ModelRegistry, tmp_path: Path
) -> None:
    url = wait_for_line(deployment.stdout, r"listening on (\S+)")[1]
    wait_for_line(deployment.stdout, "waiting: .*does not exist")
    version = tensors.publish(registry, "policy", WEIGHTS, user_data={"seed": "12"})
    wait_for_line(deployment.stdout, 'waiting: .*has no alias "production"')
    with pytest.raises(urllib.error.HTTPError, match="503") as refusal:
        get(url)
    refusal.value.close()
    deployed(registry, version)
    tensors.store(registry, "policy", WEIGHTS)  # newer, but not deployed
    wait_for_line(deployment.stdout, f"serving version {version.number}")
    reply = get(url)
    assert (reply["model"], reply["version"]) == ("policy", version.number)
    assert reply["user_data"]["seed"] == "12"
    assert post(url, LEANING_RIGHT) == {"action": 1, "version": version.number}
    assert (tmp_path / "policy.safetensors").read_bytes() == registry.retrieve("policy", "production")
    for nonsense in ([1, 2], "left", [None] * 4, {"a": 1}):
        with pytest.raises(urllib.error.HTTPError, match="400") as refusal:
            post(url, nonsense)
        refusal.value.close()


def test_a_deployment_of_a_bad_version_continues_to_serve_the_good_one(
    deployment: subprocess.Popen[str], registry: ModelRegistry, tmp_path: Path
) -> None:
    good = deployed(registry, tensors.store(registry, "policy", WEIGHTS))
    wait_for_line(deployment.stdout, f"serving version {good.number}")
    bad = deployed(registry, registry.store("policy", os.urandom(1000)))
    wait_for_line(deployment.stdout, f"waiting: version {bad.number} is no policy: .*the bytes are not safetensors")
    assert (tmp_path / "policy.safetensors").read_bytes() == registry.retrieve(good)
    deployed(registry, good)
    assert not list(tmp_path.glob(".policy*"))


def test_a_deployment_follows_its_alias_and_answers_each_request(
    deployment: subprocess.Popen[str], registry: ModelRegistry
) -> None:
    url = wait_for_line(deployment.stdout, r"listening on (\S+)")[1]
    first = deployed(registry, tensors.store(registry, "policy", WEIGHTS))
    wait_for_line(deployment.stdout, f"serving version {first.number}")
    answers: list[dict[str, int]] = []
    is_switched = threading.Event()

    def ask() -> None:
        while not is_switched.is_set():
            answers.append(post(url, LEANING_RIGHT))
        answers.append(post(url, LEANING_RIGHT))

    client = threading.Thread(target=ask)
    client.start()
    try:
        opposite = {**WEIGHTS, "output.weight": -WEIGHTS["output.weight"]}
        second = deployed(registry, tensors.publish(registry, "policy", opposite))
        wait_for_line(deployment.stdout, f"serving version {second.number}")
        deployed(registry, first)
        wait_for_line(deployment.stdout, f"serving version {first.number}")
        deployed(registry, second)
        wait_for_line(deployment.stdout, f"serving version {second.number}")
    finally:
        is_switched.set()
        client.join()
    assert answers[0] == {"action": 1, "version": first.number}
    assert answers[-1] == {"action": 0, "version": second.number}
    assert {answer["version"] for answer in answers} == {first.number, second.number}
    deployment.terminate()
    assert deployment.stdout
    assert deployment.stdout.read() == "stopped\n"
    assert deployment.wait(START_SECONDS) == 0
