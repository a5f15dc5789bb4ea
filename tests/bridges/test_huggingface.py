"""Snapshots of the cache of the Hugging Face Hub as versions, and back; read by the Hub's own tools where they are."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.bridges import huggingface as bridge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """Write a repository into a cache as the Hub's tools do, and return its folder."""
    repository = cache / "models--team--walker"
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        blob = repository / "blobs" / hashlib.sha1(data).hexdigest()
        blob.write_bytes(data)
        link = repository / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return repository


FILES = {"config.json": b"{}", "model.safetensors": os.urandom(10_000), "sub/tokens.txt": b"a b", "copy.json": b"{}"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("how", ["snapshot", "branch", "commit"])
def test_a_snapshot_becomes_a_version_with_the_files_behind_its_links(
    registry: ModelRegistry, tmp_path: Path, how: str
) -> None:
    repository = cached(tmp_path / "cache", FILES)
    if how == "snapshot":
        version = bridge.import_snapshot(registry, "walker", repository / "snapshots" / COMMIT)
    else:
        version = bridge.import_snapshot(registry, "walker", repository, revision=COMMIT if how == "commit" else "main")
    assert version.archived
    assert version.user_data == {
        "format": "folder.tar",
        "huggingface.repository": "team/walker",
        "huggingface.revision": COMMIT,
        "huggingface.files": hashlib.sha256("\0".join(sorted(FILES)).encode()).hexdigest(),
    }
    registry.download("walker", f"{tmp_path / 'plain'}/")
    assert contents(tmp_path / "plain") == FILES
    assert not any(each.is_symlink() for each in (tmp_path / "plain").rglob("*"))


def test_a_snapshot_is_imported_once(registry: ModelRegistry, tmp_path: Path) -> None:
    repository = cached(tmp_path / "cache", FILES)
    first = bridge.import_snapshot(registry, "walker", repository)
    assert bridge.import_snapshot(registry, "walker", repository) == first
    cached(tmp_path / "cache", {"config.json": b"new"}, "f" * 40)
    second = bridge.import_snapshot(registry, "walker", repository)
    assert (second.number, second.user_data["huggingface.revision"]) == (2, "f" * 40)


def test_a_snapshot_that_has_got_more_files_is_imported_again(registry: ModelRegistry, tmp_path: Path) -> None:
    """The Hub's tools download single files of a commit, and add others to the same snapshot later."""
    repository = cached(tmp_path / "cache", {"config.json": b"{}"})
    part = bridge.import_snapshot(registry, "walker", repository)
    cached(tmp_path / "cache", FILES)
    whole = bridge.import_snapshot(registry, "walker", repository)
    assert (part.number, whole.number) == (1, 2)
    assert bridge.import_snapshot(registry, "walker", repository) == whole
    registry.download("walker", f"{tmp_path / 'plain'}/")
    assert contents(tmp_path / "plain") == FILES


def test_a_snapshot_of_which_the_cache_has_some_files_is_completed(registry: ModelRegistry, tmp_path: Path) -> None:
    bridge.import_snapshot(registry, "walker", cached(tmp_path / "cache", FILES))
    cached(tmp_path / "other", {"config.json": b"{}", "not ours": b"x"})
    link = tmp_path / "other/models--team--walker/snapshots" / COMMIT / "config.json"
    before = os.readlink(link)
    snapshot = bridge.export_snapshot(registry, "walker", tmp_path / "other")
    assert contents(snapshot) == {**FILES, "not ours": b"x"}
    assert os.readlink(link) == before
    assert sorted(os.listdir(snapshot.parent.parent)) == ["blobs", "refs", "snapshots"]


def test_a_link_out_of_the_repository_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    repository = cached(tmp_path / "cache", FILES)
    (tmp_path / "cache/secret").write_text("secret")
    (repository / "snapshots" / COMMIT / "x").symlink_to("../../../secret")
    with pytest.raises(errors.InvalidError, match='"x" is a link to something outside'):
        bridge.import_snapshot(registry, "walker", repository)


def test_a_version_becomes_a_snapshot_and_comes_back_with_the_same_hash(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    original = bridge.import_snapshot(registry, "walker", cached(tmp_path / "cache", FILES))
    snapshot = bridge.export_snapshot(registry, "walker", tmp_path / "other")
    assert snapshot == tmp_path / "other/models--team--walker/snapshots" / COMMIT
    assert contents(snapshot) == FILES
    assert (snapshot / "sub/tokens.txt").is_symlink()
    assert len(os.listdir(snapshot.parent.parent / "blobs")) == 3  # two files are equal
    assert (snapshot.parent.parent / "refs/main").read_text() == COMMIT
    back = bridge.import_snapshot(registry, "back", snapshot)
    assert back.data_hash == original.data_hash
    assert sorted(os.listdir(snapshot.parent.parent)) == ["blobs", "refs", "snapshots"]


def test_versions_of_one_repository_are_next_to_each_other(registry: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for text in ("one", "two"):
        (tmp_path / "model/config.json").write_text(text)
        registry.store("walker", tmp_path / "model", alias=text)
    first = bridge.export_snapshot(registry, "walker", tmp_path / "hub", version="one", repository="team/walker")
    second = bridge.export_snapshot(
        registry, "walker", tmp_path / "hub", repository="team/walker", revision="refs/pr/1"
    )
    assert (
        bridge.export_snapshot(registry, "walker", tmp_path / "hub", version="one", repository="team/walker") == first
    )
    assert first.parent == second.parent
    refs = first.parent.parent / "refs"
    assert (refs / "main").read_text() == first.name
    assert (refs / "refs/pr/1").read_text() == second.name
    assert [each.joinpath("config.json").read_text() for each in (first, second)] == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"repository": "../../x"}, "name of a repository"),
        ({"repository": "a/b/c"}, "name of a repository"),
        ({"repository": "a--b"}, "name of a repository"),
        ({"revision": "../main"}, "name of a revision"),
        ({"revision": ""}, "name of a revision"),
        ({"version": 1}, "is not a folder"),
    ],
)
def test_what_is_no_name_or_no_folder_is_refused(
    registry: ModelRegistry, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    registry.store("walker", b"weights")
    (tmp_path / "model").mkdir()
    registry.store("walker", tmp_path / "model")
    with pytest.raises(errors.InvalidError, match=reason):
        bridge.export_snapshot(registry, "walker", tmp_path / "hub", **options)
    assert not list(tmp_path.glob("hub/**/config.json"))


def test_what_is_no_snapshot_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    repository = cached(tmp_path / "cache", FILES)
    for path, options, reason in (
        (tmp_path, {}, "is neither a snapshot of a cache"),
        (repository, {"revision": "other"}, 'has no revision "other"'),
        (repository, {"revision": "a" * 40}, "has no snapshot"),
        (repository, {"revision": "../refs/main"}, "name of a revision"),
    ):
        with pytest.raises(errors.InvalidError, match=reason):
            bridge.import_snapshot(registry, "walker", path, **options)
    (repository.rename(tmp_path / "cache/elsewhere"))
    with pytest.raises(errors.InvalidError, match="must be called models--OWNER--NAME"):
        bridge.import_snapshot(registry, "walker", tmp_path / "cache/elsewhere")


@pytest.mark.skipif(not importlib.util.find_spec("huggingface_hub"), reason="make test-bridges has huggingface_hub")
def test_the_tools_of_the_hub_find_what_was_exported(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub  # noqa: PLC0415

    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/config.json").write_text('{"size": 3}')
    (tmp_path / "model/sub/tokens.txt").write_text("a b")
    registry.store("walker", tmp_path / "model")
    hub = tmp_path / "hub"
    snapshot = bridge.export_snapshot(registry, "walker", hub, repository="team/walker")
    options: dict[str, Any] = {"cache_dir": str(hub), "local_files_only": True}
    assert huggingface_hub.snapshot_download("team/walker", **options) == str(snapshot)
    path = huggingface_hub.hf_hub_download("team/walker", "sub/tokens.txt", **options)
    assert Path(path).read_text() == "a b"
    report = huggingface_hub.scan_cache_dir(hub)
    assert not report.warnings
    (repository,) = report.repos
    assert (repository.repo_id, repository.nb_files, list(repository.refs)) == ("team/walker", 2, ["main"])
    assert json.loads((snapshot / "config.json").read_text()) == {"size": 3}


@pytest.mark.skipif(
    not (importlib.util.find_spec("huggingface_hub") and importlib.util.find_spec("torch")),
    reason="make test-bridges has huggingface_hub and PyTorch",
)
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(500)
def test_from_pretrained_reads_a_version(registry: ModelRegistry, tmp_path: Path) -> None:
    import huggingface_hub  # noqa: PLC0415
    import torch  # noqa: PLC0415

    class Policy(torch.nn.Module, huggingface_hub.PyTorchModelHubMixin):  # type: ignore[misc,unused-ignore]
        def __init__(self, size: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(size, 2)

    trained = Policy(size=3)
    trained.save_pretrained(str(tmp_path / "model"))
    registry.store("walker", tmp_path / "model")
    registry.download("walker", f"{tmp_path / 'plain'}/")
    bridge.export_snapshot(registry, "walker", tmp_path / "hub", repository="team/walker")
    plain = Policy.from_pretrained(str(tmp_path / "plain"))
    from_cache = Policy.from_pretrained("team/walker", cache_dir=str(tmp_path / "hub"), local_files_only=True)
    for policy in (plain, from_cache):
        assert torch.equal(policy.layer.weight, trained.layer.weight)
