"""The bridge to MLflow, with a real server of MLflow."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.bridges.conftest import BRIDGE_SECONDS, needed, on_slow_machines
from tests.bridges.test_bridges_page import script
from tests.pages import end_session
from tests.ports import free_port
from tests.processes import clean_environment, run
from tests.waiting import wait_until

mlflow = needed("mlflow")
bridge = needed("cogment_model_registry.bridges.mlflow")

pytestmark = [on_slow_machines, pytest.mark.filterwarnings("default")]  # what MLflow warns of is not ours


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server`, with its database in SQLite."""
    directory, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [
        f"--backend-store-uri=sqlite:///{directory}/mlflow.db",
        f"--artifacts-destination={directory}/artifacts",
    ]
    with (directory / "log").open("wb") as log:
        environment = {**clean_environment(), "MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read())
            except OSError:
                return False

        wait_until(answers, (directory / "log").read_text, BRIDGE_SECONDS)
        yield f"http://127.0.0.1:{port}"
    finally:
        end_session(process)


@pytest.fixture
def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient(endpoint)


@pytest.fixture
def name() -> str:
    return f"walker {time.time_ns()}"


def register(client: Any, name: str, directory: Path, text: str, **tags: str) -> Any:
    """Register a version in MLflow that has a folder with a text."""
    (directory / "sub").mkdir(parents=True, exist_ok=True)
    (directory / "MLmodel").write_text(text)
    (directory / "sub/weights.bin").write_bytes(os.urandom(100_000))
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(directory), "policy")
    client.log_metric(run.info.run_id, "return", 1.0)
    client.log_metric(run.info.run_id, "return", 2.5)
    client.log_metric(run.info.run_id, "loss", float("nan"))
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(name, f"{run.info.artifact_uri}/policy", run.info.run_id, tags=tags)


def files(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


def test_a_model_is_imported_with_tags_metrics_and_aliases(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path
) -> None:
    for number in range(2):
        register(client, name, tmp_path / str(number), f"version {number}", stage=f"s{number}")
    client.set_registered_model_alias(name, "production", "1")
    first, second = bridge.import_model(registry, client, name, model_id="walker")
    assert (first.tags, first.metrics, first.aliases) == ({"stage": "s0"}, {"return": 2.5}, ("production",))
    assert first.archived
    assert first.user_data["mlflow.model"] == name
    assert second.user_data["mlflow.version"] == "2"
    registry.download("walker", tmp_path / "back", version="production", unpack=True)
    assert files(tmp_path / "back") == files(tmp_path / "0")


def test_an_import_that_is_repeated_brings_only_what_has_changed(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path
) -> None:
    register(client, name, tmp_path / "0", "version 0")
    before = bridge.import_version(registry, client, name, 1, model_id="walker")
    assert bridge.import_version(registry, client, name, "1", model_id="walker") == before
    client.set_registered_model_alias(name, "best", "1")
    client.set_model_version_tag(name, "1", "note", 'a "quoted" \\ text')
    registry.update_version("walker", 1, tags={"ours": "stays"})
    register(client, name, tmp_path / "1", "version 1")
    after, new = bridge.import_model(registry, client, name, model_id="walker")
    assert (after.number, after.aliases) == (1, ("best",))
    assert after.tags == {"note": 'a "quoted" \\ text', "ours": "stays"}
    assert new.number == 2
    assert bridge.import_version(registry, client, name, "best", model_id="walker") == after


def test_versions_that_were_deleted_on_either_side(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path
) -> None:
    for number in range(3):
        register(client, name, tmp_path / str(number), f"version {number}")
    bridge.import_model(registry, client, name, model_id="walker")
    client.delete_model_version(name, "2")
    assert [each.number for each in bridge.import_model(registry, client, name, model_id="walker")] == [1, 3]
    assert len(registry.list_versions("walker")) == 3  # nothing is removed here
    registry.delete_version("walker", 1)
    again, _ = bridge.import_model(registry, client, name, model_id="walker")
    assert (again.number, again.user_data["mlflow.version"]) == (4, "1")
    # A version that MLflow has deleted is registered there again, with another number.
    theirs = bridge.export_version(registry, client, "walker", 2, name=name)
    assert theirs.version == "4"
    assert bridge.export_version(registry, client, "walker", 2, name=name).version == "4"


def test_aliases_that_the_other_side_reserves_are_left_out(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = registry.store("walker", b"weights", alias="v1")
    registry.set_alias("walker", "production", ours)
    theirs = bridge.export_version(registry, client, "walker", name=name)
    assert client.get_registered_model(name).aliases == {"production": theirs.version}
    assert "MLflow reserves the alias" in caplog.text
    client.set_registered_model_alias(name, "7", theirs.version)
    back = bridge.import_version(registry, client, name, 1, model_id="back")
    assert back.aliases == ("production",)
    assert "an alias is not copied" in caplog.text


def test_an_import_that_was_interrupted_goes_on(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        register(client, name, tmp_path / str(number), f"version {number}")
    store, stored = registry.store, list[str]()

    def fail_at_the_second(*arguments: Any, **options: Any) -> Any:
        if stored:
            raise errors.UnavailableError("the test lets it fail")
        stored.append("")
        return store(*arguments, **options)

    monkeypatch.setattr(registry, "store", fail_at_the_second)
    with pytest.raises(errors.UnavailableError):
        bridge.import_model(registry, client, name, model_id="walker")
    monkeypatch.undo()
    versions = bridge.import_model(registry, client, name, model_id="walker")
    assert [each.user_data["mlflow.version"] for each in versions] == ["1", "2", "3"]
    assert len(registry.list_versions("walker")) == 3


@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_a_version_goes_to_mlflow_and_comes_back_with_the_same_hash(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path, what: str
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/weights").write_bytes(os.urandom(50_000))
    (tmp_path / "source/config.json").write_text("{}")
    path = tmp_path / "source" if what == "a folder" else tmp_path / "source/weights"
    options: dict[str, Any] = {"tags": {"stage": "x"}, "metrics": {"return": 7.5}, "alias": "production"}
    ours = registry.store("walker", path, user_data={"step": 1000}, **options)
    theirs = bridge.export_version(registry, client, "walker", "production", name=name)
    assert theirs.tags["stage"] == "x"
    assert theirs.tags["cogment.user_data.step"] == "1000"
    assert client.get_registered_model(name).aliases == {"production": theirs.version}
    assert client.get_run(theirs.run_id).data.metrics == {"return": 7.5}
    again = bridge.export_version(registry, client, "walker", ours.number, name=name)
    assert again.version == theirs.version == "1"
    back = bridge.import_version(registry, client, name, theirs.version, model_id="back")
    assert (back.data_hash, back.tags, back.metrics) == (ours.data_hash, {"stage": "x"}, {"return": 7.5})
    assert back.aliases == ("production",)


def test_a_version_that_was_exported_is_not_imported_into_its_model_again(
    registry: ModelRegistry, client: Any, name: str
) -> None:
    ours = registry.store(name, b"weights", tags={"stage": "x"})
    theirs = bridge.export_version(registry, client, name)
    client.set_model_version_tag(name, theirs.version, "note", "good")
    client.set_registered_model_alias(name, "champion", theirs.version)
    (back,) = bridge.import_model(registry, client, name)
    assert (back.number, back.tags, back.aliases) == (ours.number, {"stage": "x", "note": "good"}, ("champion",))
    assert len(registry.list_versions(name)) == 1


def test_a_version_of_mlflow_is_not_registered_there_again(
    registry: ModelRegistry, client: Any, name: str, tmp_path: Path
) -> None:
    register(client, name, tmp_path / "0", "version 0")
    ours = bridge.import_version(registry, client, name, 1)
    registry.update_version(name, ours, tags={"checked": "yes"})
    registry.set_alias(name, "production", ours)
    theirs = bridge.export_version(registry, client, name)
    assert (theirs.version, theirs.tags["checked"]) == ("1", "yes")
    assert client.get_registered_model(name).aliases == {"production": "1"}


def test_an_export_that_was_interrupted_uses_the_same_run(
    registry: ModelRegistry, client: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.store("walker", b"weights")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the test lets it fail")

    monkeypatch.setattr(client, "log_artifacts", fail)
    with pytest.raises(OSError, match="lets it fail"):
        bridge.export_version(registry, client, "walker", name=name, experiment=name)
    monkeypatch.undo()
    bridge.export_version(registry, client, "walker", name=name, experiment=name)
    experiment = client.get_experiment_by_name(name)
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_what_mlflow_does_not_have_is_its_error(registry: ModelRegistry, client: Any, name: str) -> None:
    with pytest.raises(mlflow.MlflowException, match="not found"):
        bridge.import_version(registry, client, name, 1)
    with pytest.raises(mlflow.MlflowException, match="not found"):
        bridge.import_model(registry, client, name)
    client.create_registered_model(name)
    assert bridge.import_model(registry, client, name) == []
    with pytest.raises(errors.NotFoundError):
        bridge.export_version(registry, client, "nothing", name=name)
    with pytest.raises(errors.InvalidError, match="has a quote"):
        bridge.import_model(registry, client, "it's")


def test_the_snippet_on_the_page_runs(shared_endpoint: str, endpoint: str, client: Any, tmp_path: Path) -> None:
    register(client, "walker", tmp_path / "0", "version 0")
    client.set_registered_model_alias("walker", "champion", "1")
    path = tmp_path / "page.py"
    text = script("mlflow").replace("grpc://localhost:9002", shared_endpoint)
    path.write_text(text.replace("http://localhost:5000", endpoint))
    result = run(sys.executable, str(path), cwd=tmp_path, within_seconds=BRIDGE_SECONDS)
    assert result.returncode == 0, result.stderr
