"""Folders in the layouts of the Hugging Face Hub: snapshots become versions, and versions become snapshots.

The Hub's tools keep what they download in a cache: ``models--OWNER--NAME/`` with the bytes in ``blobs/``, a folder of
links to them for each commit in ``snapshots/``, and the names of commits in ``refs/``. Nothing here needs these tools,
or reaches the Hub. `from_pretrained` also reads a plain folder, so `ModelRegistry.download` is enough for that.
"""

import base64
import errno
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from cogment_model_registry import Folder, ModelRegistry, Version
from cogment_model_registry.bridges.origins import bring, imported
from cogment_model_registry.errors import InvalidError, quoted

REPOSITORY_KEY = "huggingface.repository"
REVISION_KEY = "huggingface.revision"
FILES_KEY = "huggingface.files"
"""The entries of `user_data` that say where a version comes from; the last one is a digest of the names of its files.

A snapshot may have only some files of its commit, and get others later.
"""

_COMMIT = re.compile("[0-9a-f]{40}")
_BLOCK_BYTES = 1024 * 1024


def import_snapshot(
    registry: ModelRegistry, model_id: str, path: "str | os.PathLike[str]", *, revision: str = "main"
) -> Version:
    """Store a snapshot of the cache as a version, with the linked files in place of the links.

    A snapshot with the same repository, commit and names of files is not stored a second time.

    Args:
        registry: The client.
        model_id: The model.
        path: A snapshot, ``models--OWNER--NAME/snapshots/COMMIT``; or the repository, ``models--OWNER--NAME``.
        revision: The snapshot of the repository: a commit, or a branch or a tag that was downloaded.

    Returns:
        The archived version.

    Raises:
        InvalidError: The path is not such a folder, or a link leads out of the repository.
        OSError: It cannot be read.
        ModelRegistryError: As for `ModelRegistry.store`.
    """
    snapshot = _snapshot(Path(os.path.abspath(os.path.expanduser(path))), revision)
    repository = snapshot.parent.parent
    origin = {
        REPOSITORY_KEY: _repository_id(repository),
        REVISION_KEY: snapshot.name,
        FILES_KEY: _names_digest(snapshot),
    }
    before = imported(registry, model_id, origin)
    folder = None if before else Folder(snapshot, links_within=repository)
    return bring(registry, model_id, folder, origin, before=before, tags={}, metrics={}, aliases=())


def export_snapshot(
    registry: ModelRegistry,
    model_id: str,
    cache_dir: "str | os.PathLike[str]",
    *,
    version: int | str = -1,
    repository: str = "",
    revision: str = "main",
) -> Path:
    """Write a version that is a folder into a cache, so that the Hub's tools find it without a network.

    Existing files of snapshots stay, and equal files are kept once. The revision points to the new snapshot only when
    it is complete.

    Args:
        registry: The client.
        model_id: The model.
        cache_dir: The cache, such as ``~/.cache/huggingface/hub``; it is created if it does not exist.
        version: The number of the version, -1 for the latest; or an alias.
        repository: The name of the repository, such as ``owner/name``; by default the one from which the version was
            imported, or else the id of the model.
        revision: The branch that points to it.

    Returns:
        The folder of the snapshot. Its commit is the one from which the version was imported, or else the first 40
        digits of the SHA-256 of the version.

    Raises:
        InvalidError: The version is not a folder, or the name of the repository or the revision is not allowed.
        NotFoundError: The model or the version does not exist.
        OSError: The cache cannot be written.
    """
    found = registry.describe_version(model_id, version)
    name = repository or found.user_data.get(REPOSITORY_KEY, model_id)
    commit = found.user_data.get(REVISION_KEY, "")
    is_original = bool(_COMMIT.fullmatch(commit)) and name == found.user_data.get(REPOSITORY_KEY)
    if not is_original:
        commit = _digest(found)[:40]
    place = Path(os.path.abspath(os.path.expanduser(cache_dir))) / _folder_name(name)
    _check_revision(revision)
    snapshot = place / "snapshots" / commit
    (place / "snapshots").mkdir(parents=True, exist_ok=True)
    (place / "blobs").mkdir(exist_ok=True)
    # The Hub's tools may have downloaded some files of the same commit.
    is_complete = snapshot.exists() and (not is_original or _names_digest(snapshot) == found.user_data.get(FILES_KEY))
    if not is_complete:
        with tempfile.TemporaryDirectory(prefix=".cogment-", dir=place) as directory:
            registry.download(found, os.path.join(directory, "files", ""))
            links = Path(directory) / "links"
            _link(Path(directory) / "files", links, place / "blobs")
            _move(links, snapshot)
    _write(place / "refs" / revision, commit)
    return snapshot


def _snapshot(path: Path, revision: str) -> Path:
    """Return the folder of a snapshot."""
    if path.parent.name == "snapshots" and path.is_dir():
        return path
    if not (path / "snapshots").is_dir():
        raise InvalidError(
            f"{quoted(str(path))} is neither a snapshot of a cache nor a repository with the folder snapshots; "
            "store a plain folder with ModelRegistry.store"
        )
    _check_revision(revision)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (path / "refs" / revision).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise InvalidError(f"{quoted(str(path))} has no revision {quoted(revision)}") from None
    if not _COMMIT.fullmatch(commit) or not (path / "snapshots" / commit).is_dir():
        raise InvalidError(f"{quoted(str(path))} has no snapshot {quoted(commit)}")
    return path / "snapshots" / commit


def _repository_id(repository: Path) -> str:
    """Return the name that a folder of a cache stands for: ``models--OWNER--NAME`` for ``OWNER/NAME``."""
    kind, *parts = repository.name.split("--")
    if kind not in ("models", "datasets", "spaces") or not parts or not all(parts):
        message = "its folder must be called models--OWNER--NAME"
        raise InvalidError(f"{quoted(repository.name)} is not a repository of a cache; {message}")
    return "/".join(parts) if kind == "models" else f"{kind}/{'/'.join(parts)}"


def _folder_name(repository: str) -> str:
    parts = repository.split("/")
    if len(parts) > 2 or not all(re.fullmatch(r"[\w.-]+", part) and "--" not in part for part in parts):
        raise InvalidError(f"{quoted(repository)} is not allowed as the name of a repository; give repository=")
    return "--".join(["models", *parts])


def _check_revision(revision: str) -> None:
    parts = revision.split("/")
    if not all(re.fullmatch(r"[\w.-]+", part) and part.strip(".") for part in parts):
        raise InvalidError(f"{quoted(revision)} is not allowed as the name of a revision")


def _names_digest(snapshot: Path) -> str:
    """Return the SHA-256 of the paths of a snapshot's files."""
    paths = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir())
    return hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()


def _move(links: Path, snapshot: Path) -> None:
    """Let a folder of links become a snapshot; if that exists, add those that it lacks."""
    try:
        os.rename(links, snapshot)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        for path in sorted(links.rglob("*")):
            target = snapshot / path.relative_to(links)
            if path.is_dir() and not path.is_symlink():
                target.mkdir(exist_ok=True)
            elif not os.path.lexists(target):
                os.rename(path, target)


def _digest(version: Version) -> str:
    return base64.b64decode(version.data_hash).hex()


def _link(files: Path, links: Path, blobs: Path) -> None:
    """Move the bytes of files to blobs, named by their SHA-256 as the Hub names large ones, and link to them."""
    for path in sorted(files.rglob("*")):
        target = links / path.relative_to(files)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / _sha256(path)
        if not blob.exists():
            os.replace(path, blob)
        # Links are relative: the snapshot is at blobs/../snapshots/COMMIT.
        depth = len(path.relative_to(files).parts) - 1
        try:
            os.symlink(os.path.join(*[".."] * (depth + 2), "blobs", blob.name), target)
        except OSError:  # Windows does not let every user make links; the Hub's tools copy then too
            shutil.copyfile(blob, target)
    links.mkdir(exist_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".cogment-", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
