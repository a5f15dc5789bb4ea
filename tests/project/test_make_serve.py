"""`make serve`: its address, and its output during the installation."""

import shlex
from pathlib import Path

from cogment_model_registry.client.endpoints import DEFAULT
from cogment_model_registry.settings import Settings
from tests.processes import run

ROOT = Path(__file__).parent.parent.parent


def recipe(*flags: str) -> list[str]:
    """Return the commands that `make serve` would run, each in a line."""
    result = run("make", "--dry-run", "--no-print-directory", "serve", *flags, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.replace("\\\n", " ").splitlines()


def test_it_serves_this_machine_at_the_default_address_of_clients() -> None:
    words = shlex.split(recipe("--old-file=.venv/serve.stamp")[-1])
    assert words[:3] == [".venv/bin/cogment", "services", "model_registry"]
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[3:])
    settings = Settings.load(flags | {"grpc_reflection": "true"}, {})
    assert settings.host == "127.0.0.1"
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 9080)
    assert (settings.archive_dir, settings.audit_log) == ("./models/", "./audit/")
    assert DEFAULT.address == f"localhost:{settings.port}" == f"localhost:{Settings().port}"


def test_given_flags_override_the_defaults() -> None:
    command = recipe("--old-file=.venv/serve.stamp", "ARGUMENTS=--host=* --port=0")[-1]
    assert command.endswith("--host=* --port=0")


def test_it_prints_what_it_installs_and_shows_its_progress(tmp_path: Path) -> None:
    lines = recipe(f"VENV={tmp_path / 'venv'}")
    assert any(line.startswith('echo "Installing the server') for line in lines)
    installations = [line for line in lines if "-m pip install" in line]
    assert len(installations) == 2
    assert not [line for line in installations if "--quiet" in line or " -q" in line]
