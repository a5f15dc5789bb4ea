"""The published stock Cogment client, with a real server process.

It needs Python 3.10 and dependencies that conflict with this project's, so it runs in its own environment, created once
below `.cache`, and prints its results: see `stock_client_session.py`.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.testing.bytes import hash_of
from tests.certificates import Authority
from tests.processes import run, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS

COGMENT = "2.10.1"
REQUIREMENTS = (f"cogment=={COGMENT}", "psutil==7.2.2")  # cogment imports psutil without requiring it
INSTALL_SECONDS = 150  # of each step
SESSION_SECONDS = 50

REPOSITORY = Path(__file__).parent.parent.parent
CACHE = REPOSITORY / ".cache"
SCRIPT = Path(__file__).with_name("stock_client_session.py")

pytestmark = pytest.mark.timeout(2 * INSTALL_SECONDS + 2 * SESSION_SECONDS)  # the first test may create the environment

Report = dict[str, Any]


@pytest.fixture(scope="session")
def stock_python() -> Path:
    """The Python of an environment with the stock client."""
    environment = CACHE / f"stock-client-{COGMENT}"
    python = environment / "bin" / "python"
    CACHE.mkdir(exist_ok=True)
    with locked(CACHE / "stock-client.lock"):
        if not python.exists():  # nor does it when the Python that it was made with was removed
            unfinished = CACHE / f"stock-client-{COGMENT}.unfinished"
            for remains in (environment, unfinished):
                shutil.rmtree(remains, ignore_errors=True)
            try:
                install(find_python(), unfinished)
                unfinished.rename(environment)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return python


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Return a context manager that only one process can enter at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_python() -> str:
    """Return a Python 3.10 that can create environments; skip the test if there is none."""
    on_path = shutil.which("python3.10")
    candidates = [on_path] if on_path else []
    candidates += sorted(map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python")))
    check = "import sys; sys.exit(sys.version_info[:2] != (3, 10))"
    for candidate in candidates:
        if (
            subprocess.run(
                [candidate, "-c", check], capture_output=True, timeout=PATIENCE_SECONDS, check=False
            ).returncode
            == 0
        ):
            return candidate
    tried = ", ".join(candidates) or "nothing by that name"
    pytest.skip(f"the stock client needs Python 3.10; found {tried}, which is none")


def install(python: str, environment: Path) -> None:
    """Create an environment with the stock client; skip the test if that fails."""
    uv = [sys.executable, "-m", "uv", "--quiet"]  # pip in the new environment would take ten times as long
    steps = {
        "no environment can be created": [*uv, "venv", "--no-project", f"--python={python}", str(environment)],
        f"{' and '.join(REQUIREMENTS)} cannot be installed": [
            *(*uv, "pip", "install", f"--python={environment / 'bin' / 'python'}", "--only-binary=:all:"),
            *REQUIREMENTS,
        ],
    }
    variables = {"UV_CACHE_DIR": str(CACHE / "uv"), **os.environ}
    for failure, command in steps.items():
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False, env=variables
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{failure} with {python}: not done after {INSTALL_SECONDS} seconds")
        if result.returncode:
            reason = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
            pytest.skip(f"{failure} with {python}: {reason[-1]}")


@pytest.fixture(scope="module", params=["plain", "mutual TLS"])
def report(request: pytest.FixtureRequest, stock_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The results of the scenarios of the session, by name."""
    place = tmp_path_factory.mktemp("stock")
    flags, files = [], []
    if request.param != "plain":
        authority = Authority(place)
        client = authority.issue("client")
        flags = [*authority.issue().flags, f"--tls_client_ca={authority.certificate}"]
        files = [authority.certificate, client.key, client.certificate]
    with server_process(place / "archive", *flags) as server:
        words = [str(SCRIPT), f"127.0.0.1:{server.port}", *map(str, files)]
        result = run(str(stock_python), *words, within_seconds=SESSION_SECONDS)
        assert result.returncode == 0, result.stderr
        assert server.stop() == 0
    sys.stderr.write(result.stderr)  # pytest shows it with a failure
    scenarios: Report = json.loads(result.stdout)
    return scenarios


def seen(report: Report, scenario: str) -> Report:
    """Return the results of a scenario, which must not have failed."""
    result: Report = report[scenario]
    assert "error" not in result, result["error"]
    return result


def test_models_are_listed_completely_whatever_their_number(report: Report) -> None:
    """The client requests pages of 10, and treats a shorter one as the last."""
    result = seen(report, "list_models")
    for count in (0, 9, 10, 11, 20, 21):
        expected = [[f"listed-{place:02}", {"place": str(place + 1)}] for place in range(count)]
        assert result["listings"][str(count)] == expected
    assert result["left"] == 0


def test_iterations_are_listed_completely_whatever_their_number(report: Report) -> None:
    result = seen(report, "list_iterations")
    for count in (0, 9, 10, 11, 20, 21):
        expected = [[number, len(f"iteration {number}"), number % 5 == 0] for number in range(1, count + 1)]
        assert result["listings"][str(count)] == expected
    assert result["unknown"].startswith("CogmentError: Failed to retrieve model [unknown] iteration list")


def test_publish_and_store_create_a_missing_model(report: Report) -> None:
    result = seen(report, "publish_and_store")
    assert result["before"] is None
    assert result["created"] == ["m", {}]
    published, stored, stored_first = result["published"], result["stored"], result["stored first"]
    for info in (published, stored, stored_first):
        assert result["began_ns"] <= info.pop("timestamp") <= result["ended_ns"]
    assert published == {
        "name": "m",
        "iteration": 1,
        "hash": hash_of(b"published"),
        "size": 9,
        "stored": False,
        "properties": {"episodes": "10", "note": ""},
    }
    assert stored == {
        "name": "m",
        "iteration": 2,
        "hash": hash_of(b"stored"),
        "size": 6,
        "stored": True,
        "properties": {},
    }
    assert stored_first == {**stored, "name": "n", "iteration": 1, "properties": {"first": "yes"}}


def test_an_invalid_name_is_refused_and_creates_nothing(report: Report) -> None:
    result = seen(report, "publish_and_store")
    assert result["not a name"] == "INVALID_ARGUMENT"
    assert result["models"] == ["m", "n"]


def test_iteration_info_is_found_by_number_and_is_none_for_a_missing_one(report: Report) -> None:
    result = seen(report, "iteration_info")
    infos = result["infos"]
    one, two = infos["1"], infos["2"]
    assert (one["iteration"], one["hash"], one["stored"], one["properties"]) == (1, hash_of(b"one"), False, {})
    assert (two["iteration"], two["hash"], two["stored"], two["properties"]) == (2, hash_of(b"two"), True, {"a": "b"})
    assert (infos["-1"], infos["-2"]) == (two, one)
    assert [infos[number] for number in ("0", "3", "-3", "2147483647", "-2147483648")] == [None] * 5
    assert result["unknown"] == "CogmentError: Unknown model [unknown]"


def test_a_model_is_retrieved_by_number_and_is_none_for_a_missing_one(report: Report) -> None:
    result = seen(report, "retrieve")
    assert result["models"] == {"1": "one", "2": "two", "-1": "two", "-2": "one", "0": None, "3": None, "-3": None}
    assert result["latest"] == "two"
    assert result["unknown"] == "CogmentError: Unknown model [unknown]"


def test_properties_of_a_model_are_replaced_whole_and_survive_a_publish(report: Report) -> None:
    result = seen(report, "model_info")
    assert result["seen"] == [None, {"type": "policy", "empty": ""}, {"owner": "été"}, {}]
    assert result["after publish"] == {"type": "policy"}


def test_a_tracked_model_follows_what_is_published_and_stored(report: Report) -> None:
    result = seen(report, "track")
    assert result["available before"] is False
    assert result["followed"] == [[number, number] for number in range(1, 6)]
    assert result["after many"] == [20, 20]
    assert result["unknown"] == "CogmentError: Model [unknown] not found in Model Registry"


def test_updates_yield_the_latest_iteration_then_newer_ones_until_the_model_is_removed(report: Report) -> None:
    result = seen(report, "iteration_updates")
    assert [info["iteration"] for info in result["received"]] == [2, 3, 4, 5]
    assert result["received"] == result["sent"][1:]
    assert result["removed"] == "NOT_FOUND"
    assert result["unknown"] == "NOT_FOUND"


def test_models_of_all_sizes_are_retrieved_unchanged(report: Report) -> None:
    sizes = (1, 2**21 - 1, 2**21, 2**21 + 1, 10_000_000)  # the client sends chunks of 2 MiB
    calls = ("publish_model", "store_model")
    expected = {f"{call} {size}": {"reported size": size, "same": True} for size in sizes for call in calls}
    assert seen(report, "large_models") == expected


def test_a_removed_model_is_gone_and_can_be_created_again(report: Report) -> None:
    result = seen(report, "remove")
    assert result.pop("iterations").startswith("CogmentError: Failed to retrieve model [m] iteration list")
    assert result == {
        "models": ["m-v000001"],
        "info": None,
        "data": "CogmentError: Unknown model [m]",
        "again": "NOT_FOUND",
        "recreated": 1,
        "recreated listed": [1],
    }


def test_the_client_of_earlier_releases_works_too(report: Report) -> None:
    result = seen(report, "earlier_client")
    assert result["infos"] == [[1, False, 7], [2, True, 0]]
    properties = [{"type": "policy"}, {"step": "1"}]
    assert result["retrieved"] == [["initial", *properties], ["", *properties]]
    assert result["missing"] is None
    assert result["unknown"] is None


DISCOVERY = """
import asyncio, sys, cogment

async def main():
    directory = cogment.Endpoint(sys.argv[1])
    context = cogment.Context("user", None, directory_endpoint=directory)
    registry = await context.get_model_registry_v2(cogment.Endpoint("cogment://discover?Sim=20"))
    info = await registry.publish_model("m", b"weights")
    print(info.iteration, (await registry.retrieve_model("m")).decode())

asyncio.run(main())
"""


def test_registry_is_found_through_a_directory(stock_python: Path, tmp_path: Path) -> None:
    with server_process(tmp_path, f"--persistence_file={tmp_path / 'services'}", service="directory") as directory:
        endpoint = f"grpc://127.0.0.1:{directory.port}"
        flags = (f"--directory_endpoint={endpoint}", "--directory_registration_properties=Sim=20,hpp")
        with server_process(tmp_path / "archive", *flags):
            wait = ("client", "directory", "wait_for_ready", f"--directory_endpoint={endpoint}", "--type=modelregistry")
            assert run_cogment(*wait).returncode == 0
            found = run(str(stock_python), "-c", DISCOVERY, endpoint, within_seconds=SESSION_SECONDS)
        assert (found.returncode, found.stdout) == (0, "1 weights\n"), found.stderr
