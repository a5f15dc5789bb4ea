"""A leading ~ is the home directory wherever a path can be given: settings, commands, and the Python client."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.cli import cogment
from cogment_model_registry.cli.running import PathType
from cogment_model_registry.client.opening import CACHE_VARIABLE
from cogment_model_registry.settings import DirectorySettings, ServiceSettings, Settings, all_settings
from cogment_model_registry.system.paths import expanded
from tests.in_process import run_in_process

DATA = b"the bytes of a version"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, which is not the current one."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "current").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "current")
    return home


@pytest.mark.parametrize("path", ["~", "~/x", Path("~/x"), b"~/x"])
def test_a_leading_tilde_is_expanded_to_the_home_directory(home: Path, path: str | bytes | Path) -> None:
    assert expanded(path) in (str(home), str(home / "x"))


@pytest.mark.parametrize("path", ["", "x", "./~", "a/~", "a~", "~no such user/x", "/~/x"])
def test_other_paths_are_unchanged(path: str) -> None:
    assert expanded(path) == path


@pytest.mark.parametrize("settings_class", [Settings, DirectorySettings])
def test_each_setting_that_is_a_path_may_begin_with_a_tilde(home: Path, settings_class: type[ServiceSettings]) -> None:
    paths = [setting for setting in all_settings(settings_class) if setting.kind.placeholder == "PATH"]
    assert {"log_file", "archive_dir" if settings_class is Settings else "persistence_file"} <= {p.name for p in paths}
    for setting in paths:
        for settings in (
            settings_class.load({setting.name: "~/x"}, {}),
            settings_class.load({}, {setting.environment: "~/x"}),
            dataclasses.replace(settings_class(), **{setting.name: "~/x"}),
        ):
            assert getattr(settings, setting.name) == str(home / "x")


def commands(command: click.Command) -> Iterator[click.Command]:
    """Yield a command and all below it."""
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below)


def test_each_path_of_a_command_may_begin_with_a_tilde() -> None:
    parameters = [parameter for command in commands(cogment) for parameter in command.params]
    paths = [each for each in parameters if isinstance(each.type, click.Path) or each.name in ("file", "output")]
    assert len(paths) >= 8
    for parameter in paths:
        assert isinstance(parameter.type, PathType), parameter.name


def test_commands_expand_a_tilde(home: Path, shared_endpoint: str) -> None:
    (home / "w").write_bytes(DATA)
    client = ("client", "model_registry")
    endpoint = f"--endpoint={shared_endpoint}"
    assert run_in_process(*client, "publish", "m", "~/w", endpoint).returncode == 0
    assert run_in_process(*client, "retrieve", "m", "--output=~/out", endpoint).returncode == 0
    assert (home / "out").read_bytes() == DATA
    (home / "archive/m").mkdir(parents=True)
    (home / "archive/m/m.yaml").write_text("model_id: m\nuser_data: {}\n")
    assert run_in_process("archive", "verify", "~/archive").returncode == 0
    assert run_in_process("archive", "export", "~/archive", "m", "--output=~/m.tar").returncode == 0
    assert run_in_process("archive", "import", "~/archive", "~/m.tar", "--model_id=n").returncode == 0
    assert {path.name for path in home.iterdir()} == {"w", "out", "archive", "m.tar"}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("by_variable", [False, True])
def test_the_client_expands_a_tilde(
    home: Path, shared_endpoint: str, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    (home / "w").write_bytes(DATA)
    if by_variable:
        monkeypatch.setenv(CACHE_VARIABLE, "~/cache")
    with contextlib.closing(
        ModelRegistry(shared_endpoint, cache_dir=None if by_variable else Path("~/cache"))
    ) as registry:
        assert registry.publish("m", "~/w").data_size_bytes == len(DATA)
        assert registry.retrieve("m") == DATA
        registry.download("m", "~/out")
    assert (home / "out").read_bytes() == DATA
    assert [path.read_bytes() for path in (home / "cache").rglob("*") if path.is_file() and path.stat().st_size] == [
        DATA
    ]
    assert list(Path.cwd().iterdir()) == []
