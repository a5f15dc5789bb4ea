"""Installing and importing the client needs few packages, no server, no POSIX, and little time."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests import processes
from tests.installation.without_posix import SERVER_MODULES
from tests.processes import server_process

WITHOUT_SERVER = f"import sys; sys.modules.update(dict.fromkeys({SERVER_MODULES!r})); "
COGMENT = "from cogment_model_registry import cli; sys.exit(cli.main(sys.argv[1:]))"


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a separate process."""
    return processes.run(sys.executable, "-c", program, *words)


def loaded_by(program: str) -> set[str]:
    """Return the packages that a program has loaded at its end."""
    result = run(f"{program}\nimport json, sys; print(json.dumps(sorted(sys.modules)))")
    assert (result.returncode, result.stderr) == (0, "")
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_client_needs_four_packages() -> None:
    needed = [each for each in requires("cogment-model-registry") or [] if "extra ==" not in each]
    assert sorted(re.split("[<>=]", each)[0] for each in needed) == ["click", "grpcio", "protobuf", "tqdm"]


def test_importing_the_package_loads_no_slow_module() -> None:
    loaded = loaded_by("import cogment_model_registry; assert cogment_model_registry.__version__")
    assert not loaded & {"asyncio", "click", "dataclasses", "google", "grpc", "inspect", "tqdm"}


def test_the_client_loads_nothing_of_the_server_or_its_extra() -> None:
    loaded = loaded_by("from cogment_model_registry import ModelRegistry, Latest, VersionInfo, aio")
    package = "cogment_model_registry"
    assert not {f"{package}.{name}" for name in ("discovery", "registry", "server", "serving", "storage")} & loaded
    by_grpc = {"grpc_health", "grpc_reflection"}  # gRPC loads them if they are installed
    assert not loaded & {*SERVER_MODULES, "click", "tqdm", "uvloop"} - by_grpc


def test_the_version_is_printed_without_loading_commands() -> None:
    loaded = loaded_by("from cogment_model_registry import cli; assert cli.main(['--version']) == 0")
    assert not loaded & {"asyncio", "cogment_model_registry.settings", "google", "grpc", "tqdm", "yaml"}


@pytest.mark.parametrize(
    "words", [["services", "model_registry"], ["services", "directory"], ["archive", "verify", "."]]
)
def test_without_its_extra_a_server_says_in_one_line_what_to_install(words: list[str]) -> None:
    result = run(WITHOUT_SERVER + COGMENT, *words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: cogment {words[0]} needs cachetools, grpc_health, ")
    assert result.stderr.endswith("pip install 'cogment-model-registry[server]'\n")


@pytest.mark.parametrize(
    "words", [[], ["services"], ["archive"], ["client"], ["client", "model_registry"]], ids=" ".join
)
def test_help_works_without_the_extra(words: list[str]) -> None:
    result = run(WITHOUT_SERVER + COGMENT, *words, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(" ".join(["Usage: cogment", *words]))


def test_an_old_python_is_refused_by_servers_in_one_line() -> None:
    result = run(f"import sys; sys.version_info = (3, 10, 13); {COGMENT}", "services", "model_registry")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: cogment services needs Python 3.11 or later")


def test_the_client_works_without_modules_that_windows_lacks(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        module = "tests.installation.without_posix"
        result = processes.run(sys.executable, "-m", module, endpoint, str(tmp_path))
        assert result.returncode == 0, result.stderr
        assert "cogment services runs on Linux and macOS only" in result.stderr
        assert "cogment archive runs on Linux and macOS only" in result.stderr
        assert server.stop() == 0


# Together with other packages.

OTHERS = (
    *("gymnasium", "hydra-core", "jax", "mlflow", "ray", "stable-baselines3", "tensorboard", "tensorflow", "torch"),
    *("mlflow==2.10.*", "ray==2.9.*", "tensorflow==2.16.*", "tensorflow==2.18.*", "wandb", "wandb==0.16.*"),
)
TOGETHER = tuple(each for each in OTHERS if "==" not in each)
RESOLVE_SECONDS = 120


@pytest.fixture(scope="module")
def index() -> None:
    """Skip unless resolving is requested, since it needs an index of packages and depends on it."""
    if os.environ.get("COGMENT_TEST_RESOLUTION") != "1":
        pytest.skip("COGMENT_TEST_RESOLUTION=1 resolves the client together with other packages, from a package index")


@pytest.mark.timeout(2 * RESOLVE_SECONDS)
@pytest.mark.parametrize("others", [*[(each,) for each in OTHERS], TOGETHER], ids="+".join)
@pytest.mark.usefixtures("index")
def test_the_client_resolves_together_with(others: tuple[str, ...]) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--python-version=3.11", "-"]
    wanted = "\n".join([*project["dependencies"], *others])
    result = subprocess.run(command, input=wanted, capture_output=True, text=True, timeout=RESOLVE_SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    print(result.stdout)  # noqa: T201 # the chosen versions, for docs/compatibility.md
