"""The bridge to Weights & Biases, with real offline runs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.bridges.conftest import needed, on_slow_machines

wandb = needed("wandb")
bridge = needed("cogment_model_registry.bridges.wandb")

pytestmark = [on_slow_machines, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what wandb writes in the folder of the test, and end its service."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def began(tmp_path: Path) -> Any:
    return wandb.init(project="walker", dir=str(tmp_path))


def folder_of(run: Any) -> Path:
    return Path(run.dir).parent


def finish(run: Any) -> None:
    """End a run; the service of wandb may write its last records only when it ends itself."""
    run.finish()
    wandb.teardown()


def source(tmp_path: Path, text: str = "{}") -> Path:
    path = tmp_path / "source"
    (path / "sub").mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(text)
    (path / "sub/weights.bin").write_bytes(os.urandom(100_000))
    return path


def logged(run: Any, path: Path, **options: Any) -> None:
    artifact = wandb.Artifact("policy", type="model", metadata={"stage": "x"})
    artifact.add_dir(str(path))
    run.log_artifact(artifact, **options)


def files(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


def test_the_artifacts_of_an_offline_run_become_versions(registry: ModelRegistry, tmp_path: Path) -> None:
    run = began(tmp_path)
    run.log({"return": 1.5, "loss": float("nan"), "text": "x"})
    logged(run, source(tmp_path, "first"))
    run.log({"return": 7})
    logged(run, source(tmp_path, "second"), aliases=["best"])
    data = wandb.Artifact("episodes", type="dataset")
    data.add_dir(str(tmp_path / "source"))
    run.log_artifact(data)
    finish(run)
    first, second = bridge.import_run(registry, folder_of(run))
    assert [each.model_id for each in (first, second)] == ["policy", "policy"]
    assert (first.metrics, second.metrics) == ({"return": 1.5}, {"return": 7.0})
    assert (first.aliases, second.aliases) == ((), ("best",))
    assert second.tags == {"stage": "x"}
    assert second.user_data["wandb.run"] == run.id
    registry.download("policy", f"{tmp_path / 'back'}/", version="best")
    assert files(tmp_path / "back") == files(tmp_path / "source")
    assert bridge.import_run(registry, folder_of(run)) == [first, second]
    assert len(bridge.import_run(registry, folder_of(run), model_id="all", kind="")) == 3


@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_a_version_goes_into_an_offline_run_and_comes_back_with_the_same_hash(
    registry: ModelRegistry, tmp_path: Path, what: str
) -> None:
    path = source(tmp_path) if what == "a folder" else source(tmp_path) / "config.json"
    ours = registry.store("walker", path, tags={"stage": "x"}, metrics={"return": 3}, alias="production")
    run = began(tmp_path)
    artifact = bridge.log_version(registry, run, "walker", "production")
    assert artifact.metadata["metrics"] == {"return": 3}
    finish(run)
    (back,) = bridge.import_run(registry, folder_of(run), model_id="back")
    assert back.data_hash == ours.data_hash
    assert (back.aliases, back.tags, back.metrics) == (("production",), {"stage": "x"}, {"return": 3.0})
    (same,) = bridge.import_run(registry, folder_of(run))
    assert (same.model_id, same.number) == ("walker", ours.number)
    assert len(registry.list_versions("walker")) == 1


def test_records_of_many_blocks_are_read_and_a_cut_end_is_left_out(registry: ModelRegistry, tmp_path: Path) -> None:
    run = began(tmp_path)
    for number in range(300):
        run.log({"long": "x" * 3000, "number": number})
    logged(run, source(tmp_path))
    finish(run)
    (path,) = folder_of(run).glob("run-*.wandb")
    assert path.stat().st_size > 5 * bridge._BLOCK_BYTES
    (version,) = bridge.import_run(registry, folder_of(run))
    assert version.metrics == {"number": 299.0}
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert bridge.import_run(registry, folder_of(run)) == [version]
    path.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    with pytest.raises(errors.DataLossError, match="is damaged before byte"):
        bridge.import_run(registry, folder_of(run))
    path.write_bytes(b"something else")
    with pytest.raises(errors.InvalidError, match="is not the log of a run"):
        bridge.import_run(registry, folder_of(run))


def test_what_is_not_there_or_was_changed_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidError, match=r"has no run-\*.wandb"):
        bridge.import_run(registry, tmp_path)
    run = began(tmp_path)
    logged(run, source(tmp_path))
    finish(run)
    for staged in (tmp_path / "artifacts/staging").iterdir():
        staged.chmod(0o600)
        staged.write_bytes(b"changed")
    with pytest.raises(errors.DataLossError, match="has changed since"):
        bridge.import_run(registry, folder_of(run))
    run = began(tmp_path)
    artifact = wandb.Artifact("policy", type="model")
    artifact.add_reference("https://example.org/weights.bin", checksum=False)
    run.log_artifact(artifact)
    finish(run)
    with pytest.raises(errors.InvalidError, match="which is not on this machine"):
        bridge.import_run(registry, folder_of(run))
    assert registry.list_models() == []
