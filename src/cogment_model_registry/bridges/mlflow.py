"""Versions of MLflow's registered models as versions of the registry, and back.

    import_model(registry, MlflowClient("http://mlflow:5000"), "walker")
    export_version(registry, MlflowClient("http://mlflow:5000"), "walker", "production")

The artifact of a version is a folder, and so is the version here; tags, metrics and aliases are copied too. Both
directions can be repeated: a version is transferred once, and then only changes of tags, metrics and aliases are.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any, TypeAlias

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from cogment_model_registry import ModelRegistry, Version
from cogment_model_registry.bridges.origins import bring, imported
from cogment_model_registry.errors import InvalidError, NotFoundError, quoted

_log = logging.getLogger(__name__)

MODEL_KEY = "mlflow.model"
VERSION_KEY = "mlflow.version"
CREATED_KEY = "mlflow.created_ms"
RUN_KEY = "mlflow.run_id"
"""The entries of `user_data` that say where a version comes from; the time distinguishes models of the same name."""

OUR_MODEL_TAG = "cogment.model"
OUR_VERSION_TAG = "cogment.version"
OUR_CREATED_TAG = "cogment.created_ns"
OUR_FILE_TAG = "cogment.file"
"""The tags of a version of MLflow that say where it comes from, and which artifact is the version."""

_USER_DATA_TAG = "cogment.user_data."
"""The prefix of tags that stand for entries of `user_data`."""

ARTIFACT_PATH = "model"
FILE_NAME = "version.bin"
"""Where the artifacts of an exported version are in its run, and the name of a version that is a file."""

_FOLDER = "folder.tar"

_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
"""The aliases that MLflow refuses, since they stand for versions there."""

_TheirVersion: TypeAlias = Any
"""A `ModelVersion` of MLflow."""


def import_model(
    registry: ModelRegistry, client: MlflowClient, name: str, *, model_id: str | None = None
) -> list[Version]:
    """Import all versions of a registered model of MLflow that are ready, oldest first.

    Args:
        registry: The registry.
        client: The client of MLflow.
        name: The registered model.
        model_id: The model in the registry; by default with the same name.

    Returns:
        The versions in the registry.

    Raises:
        MlflowException: MLflow does not answer, or has no such model.
        ModelRegistryError: As for `ModelRegistry.store`.
    """
    found = sorted(_versions(client, name), key=lambda each: int(each.version))
    if not found:
        client.get_registered_model(name)  # a search finds nothing for a name that does not exist
    return [import_version(registry, client, name, each.version, model_id=model_id) for each in found]


def import_version(
    registry: ModelRegistry, client: MlflowClient, name: str, version: int | str, *, model_id: str | None = None
) -> Version:
    """Import one version of a registered model of MLflow, with its tags, metrics and aliases.

    Args:
        registry: The registry.
        client: The client of MLflow.
        name: The registered model.
        version: The version there: its number, or an alias.
        model_id: The model in the registry; by default with the same name.

    Returns:
        The archived version in the registry.

    Raises:
        InvalidError: The version is not ready.
        MlflowException: MLflow does not answer, or has no such version.
        ModelRegistryError: As for `ModelRegistry.store`.
    """
    theirs = _their_version(client, name, version)
    if theirs.status != "READY":
        raise InvalidError(f"version {theirs.version} of {quoted(name)} in MLflow is {theirs.status}, not READY")
    target = name if model_id is None else model_id
    origin = {
        MODEL_KEY: name,
        VERSION_KEY: str(theirs.version),
        CREATED_KEY: str(theirs.creation_timestamp),
        **({RUN_KEY: theirs.run_id} if theirs.run_id else {}),
    }
    own = {OUR_MODEL_TAG, OUR_VERSION_TAG, OUR_CREATED_TAG, OUR_FILE_TAG}
    details: dict[str, Any] = {
        "tags": {
            tag: text for tag, text in theirs.tags.items() if tag not in own and not tag.startswith(_USER_DATA_TAG)
        },
        "metrics": _their_metrics(client, theirs),
        "aliases": _their_aliases(client, name, theirs.version),
    }
    before = imported(registry, target, origin) or _ours(registry, target, theirs)
    if before is not None:
        return bring(registry, target, None, origin, before=before, **details)
    uri = client.get_model_version_download_uri(name, theirs.version)
    with tempfile.TemporaryDirectory(prefix="cogment-mlflow-") as directory:
        place = download_artifacts(artifact_uri=uri, dst_path=directory, tracking_uri=client.tracking_uri)
        file = theirs.tags.get(OUR_FILE_TAG)
        if file is not None and os.path.isfile(os.path.join(place, os.path.basename(file))):
            place = os.path.join(place, os.path.basename(file))
        return bring(registry, target, os.path.normpath(place), origin, before=None, **details)


def export_version(
    registry: ModelRegistry,
    client: MlflowClient,
    model_id: str,
    version: int | str = -1,
    *,
    name: str | None = None,
    experiment: str = "cogment-model-registry",
) -> _TheirVersion:
    """Register a version in MLflow, with its files as the artifacts of a run, its tags, metrics and aliases.

    Args:
        registry: The registry.
        client: The client of MLflow.
        model_id: The model.
        version: Its number, -1 for the latest; or an alias.
        name: The registered model of MLflow; by default with the same name. It is created if it does not exist.
        experiment: The experiment of the run; it is created if it does not exist.

    Returns:
        The `ModelVersion` of MLflow: the one from which the version was imported or to which it was exported before,
        or else a new one.

    Raises:
        NotFoundError: The model or the version does not exist, or the version was evicted.
        MlflowException: MLflow does not answer, or refuses a name or a tag.
    """
    ours, target = registry.describe_version(model_id, version), model_id if name is None else name
    origin = {
        OUR_MODEL_TAG: model_id,
        OUR_VERSION_TAG: str(ours.number),
        OUR_CREATED_TAG: str(ours.created_ns),
    }
    theirs = _exported(client, target, ours, origin)
    if theirs is None:
        theirs = _register(registry, client, target, ours, origin=origin, experiment=experiment)
    for tag, text in ours.tags.items():
        if theirs.tags.get(tag) != text:
            client.set_model_version_tag(target, theirs.version, tag, text)
    for alias in sorted(set(ours.aliases) - set(_their_aliases(client, target, theirs.version))):
        if _RESERVED_ALIAS.fullmatch(alias):
            _log.warning("MLflow reserves the alias %s; it is not copied", quoted(alias))
            continue
        client.set_registered_model_alias(target, alias, theirs.version)
    return client.get_model_version(target, theirs.version)


def _register(
    registry: ModelRegistry,
    client: MlflowClient,
    name: str,
    ours: Version,
    *,
    origin: dict[str, str],
    experiment: str,
) -> _TheirVersion:
    """Register a version, with the artifacts of a run; an earlier interrupted try is continued."""
    run = _run(client, experiment, ours, origin)
    tags = {**{_USER_DATA_TAG + key: text for key, text in ours.user_data.items()}, **ours.tags, **origin}
    is_folder = ours.user_data.get("format") == _FOLDER
    if not is_folder:
        tags[OUR_FILE_TAG] = FILE_NAME
    with tempfile.TemporaryDirectory(prefix="cogment-mlflow-") as directory:
        target = os.path.join(directory, "files", "") if is_folder else os.path.join(directory, FILE_NAME)
        registry.download(ours, target)
        client.log_artifacts(run.info.run_id, target if is_folder else directory, ARTIFACT_PATH)
    for metric, value in ours.metrics.items():
        client.log_metric(run.info.run_id, metric, value)
    client.set_terminated(run.info.run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, f"{run.info.artifact_uri}/{ARTIFACT_PATH}", run.info.run_id, tags=tags)


def _run(client: MlflowClient, experiment: str, ours: Version, origin: dict[str, str]) -> Any:
    """Return a run for the artifacts of a version: the one of an earlier try, or else a new one."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    # MLflow cannot search for a text with a quote in it.
    key = OUR_CREATED_TAG
    for run in client.search_runs([experiment_id], f"tags.`{key}` = '{origin[key]}'"):
        if all(run.data.tags.get(tag) == text for tag, text in origin.items()):
            return run
    return client.create_run(experiment_id, tags=origin, run_name=f"{ours.model_id} {ours.number}")


def _exported(client: MlflowClient, name: str, ours: Version, origin: dict[str, str]) -> _TheirVersion | None:
    """Return the version of MLflow that a version comes from, or that it was exported to."""
    for each in _versions(client, name, only_ready=False):
        tags = {tag: each.tags.get(tag) for tag in origin}
        theirs = (name, str(each.version), str(each.creation_timestamp))
        if tags == origin or theirs == tuple(ours.user_data.get(key) for key in (MODEL_KEY, VERSION_KEY, CREATED_KEY)):
            return each
    return None


def _ours(registry: ModelRegistry, model_id: str, theirs: _TheirVersion) -> Version | None:
    """Return the archived version of a model that was exported to a version of MLflow; None if there is none."""
    number = theirs.tags.get(OUR_VERSION_TAG, "")
    if theirs.tags.get(OUR_MODEL_TAG) != model_id or not number.isdecimal():
        return None
    try:
        found = registry.describe_version(model_id, int(number))
    except NotFoundError:
        return None
    return found if found.archived and str(found.created_ns) == theirs.tags.get(OUR_CREATED_TAG) else None


def _their_version(client: MlflowClient, name: str, version: int | str) -> _TheirVersion:
    if isinstance(version, str) and not version.isdecimal():
        return client.get_model_version_by_alias(name, version)
    return client.get_model_version(name, str(version))


def _versions(client: MlflowClient, name: str, *, only_ready: bool = True) -> Iterator[_TheirVersion]:
    """Yield the versions of a registered model, in pages; none if it does not exist."""
    if "'" in name:
        raise InvalidError(f"the name {quoted(name)} has a quote, for which MLflow cannot search")
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        yield from (each for each in page if each.status == "READY" or not only_ready)
        token = page.token
        if not token:
            return


def _their_aliases(client: MlflowClient, name: str, version: str) -> list[str]:
    """Return the aliases of a version, which some replies of MLflow lack."""
    aliases: dict[str, str] = client.get_registered_model(name).aliases
    return [alias for alias, number in aliases.items() if str(number) == str(version)]


def _their_metrics(client: MlflowClient, theirs: _TheirVersion) -> dict[str, float]:
    """Return the last metrics of the run of a version, or of the version itself."""
    found = getattr(theirs, "metrics", None) or ()  # MLflow 2 has none
    metrics: dict[str, float] = {each.key: each.value for each in found}
    if not metrics and theirs.run_id:
        metrics = dict(client.get_run(theirs.run_id).data.metrics)
    return metrics
