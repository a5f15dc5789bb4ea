"""Checks of arguments, for callers without a type checker: errors come from here, not from protobuf or gRPC."""

import json
import math
import operator
import os
from collections.abc import Mapping
from typing import Protocol, SupportsIndex, TypeAlias

from cogment_model_registry.errors import InvalidError, NotFoundError, quoted
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo

LATEST = -1
"""The number that stands for the latest version; -2 stands for the one before, and so on."""


class SupportsItem(Protocol):
    """A number of NumPy, PyTorch or JAX, or an array with one element."""

    def item(self) -> object:
        """Return it as a number of Python."""


UserData: TypeAlias = Mapping[str, str | float | SupportsItem]
"""Annotations as the caller gives them; `checked_user_data` has the rule by which they become texts."""

_LONGEST_SECONDS = 366 * 24 * 3600.0
"""The longest wait; gRPC treats much longer ones as no wait at all."""


def checked_seconds(name: str, seconds: float) -> float:
    """Return a duration as a float, cut to the longest wait.

    Raises:
        InvalidError: It is not a number, or negative.
    """
    try:
        if seconds >= 0:  # which NaN is not
            return float(min(seconds, _LONGEST_SECONDS))
    except (TypeError, ValueError):
        pass
    raise InvalidError(f"{name} is {seconds!r}; it must be a number of seconds")


def checked_text(name: str, text: object) -> str:
    """Return a text.

    Raises:
        InvalidError: It is not a string, or has unpaired surrogates, which cannot be sent.
    """
    if not isinstance(text, str):
        raise InvalidError(f"{name} is {text!r}; it must be a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{name} is {text!r}; it must not have unpaired surrogates (lone surrogates)") from None
    return text


def checked_id(model_id: object) -> str:
    """Return the id of a model; its rules are the server's."""
    return checked_text("model_id", model_id)


def checked_path(name: str, path: str | os.PathLike[str]) -> str:
    """Return the path of a file.

    Raises:
        InvalidError: It is no path, or has a null character, which no path has.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise InvalidError(f"{name} is {path!r}; it must be the path of a file") from None
    if "\0" in text:
        raise InvalidError(f"{name} is {text!r}; a path has no null character")
    return text


def checked_user_data(user_data: UserData | None) -> dict[str, str]:
    """Return `user_data` as it can be sent, which is text.

    Numbers and booleans are converted as JSON writes them: ``true``, ``1000``, ``0.5``; those of NumPy, PyTorch and JAX
    too, by their `item`.

    Raises:
        InvalidError: It is not a mapping of strings to strings, numbers or booleans.
    """
    try:
        given = dict(user_data or {})
    except (TypeError, ValueError):
        allowed = "it must be a mapping of strings to strings, numbers or booleans"
        raise InvalidError(f"user_data is {user_data!r}; {allowed}") from None
    return {
        checked_text(f"the key {key!r} of user_data", key): _user_data_text(key, value) for key, value in given.items()
    }


def _user_data_text(key: str, value: object) -> str:
    name, item = f"user_data[{key!r}]", getattr(value, "item", None)
    if isinstance(value, str):
        return checked_text(name, value)
    try:
        plain = item() if callable(item) else value
        if isinstance(plain, int | float):  # booleans are whole numbers
            return json.dumps(plain)
    except (TypeError, ValueError, RuntimeError):  # an array with several elements, or a number with too many digits
        pass
    raise InvalidError(f"{name} is of type {type(value).__name__}; it must be a string, a number or a boolean")


def checked_whole(name: str, number: SupportsIndex) -> int:
    """Return a whole number of any kind.

    Raises:
        InvalidError: It is not a whole number.
    """
    try:
        return operator.index(number)
    except TypeError:
        raise InvalidError(f"{name} is {number!r}; it must be a whole number") from None


def checked_limit(limit: SupportsIndex | None) -> int | None:
    """Return how many results a call returns at most; None for all.

    Raises:
        InvalidError: It is not a whole number, or negative.
    """
    if limit is None:
        return None
    most = checked_whole("limit", limit)
    if most < 0:
        raise InvalidError(f"limit is {most}; it must be a whole number from 0 on, or None for all")
    return most


def checked_number(model_id: str, number: SupportsIndex) -> int:
    """Return the number of a version for a request, where it is an int32; in replies it is a uint32.

    Raises:
        InvalidError: It is not a whole number.
        NotFoundError: It is outside of that range.
    """
    index = checked_whole("the number of a version", number)
    if not -(2**31) <= index < 2**31:
        raise NotFoundError.version(model_id, index)
    return index


def checked_key(model_id: str, key: "SupportsIndex | str | VersionInfo | Version") -> int | str:
    """Return the number of a version, or -n for the n-th from the last, or an alias.

    Raises:
        InvalidError: It has another type, or is a version of another model.
        NotFoundError: No version can have such a number.
    """
    if isinstance(key, str):
        if key.lstrip("+-").isdecimal():
            raise InvalidError(f"the number of a version is {key!r}, which is text; it must be a whole number")
        return checked_text("the alias", key)
    if isinstance(key, Version):
        key = key.info
    if isinstance(key, VersionInfo):
        if key.model_id != model_id:
            raise InvalidError(f"the version belongs to model {quoted(key.model_id)}, not to {quoted(model_id)}")
        return key.number
    return checked_number(model_id, key)


def checked_tags(tags: Mapping[str, str | None], name: str = "tags") -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the tags to set, and those to remove, which are None.

    Args:
        tags: The tags.
        name: What an error calls them.

    Raises:
        InvalidError: It is not a mapping of strings to strings or None.
    """
    entries = _mapping(name, tags)
    removed = tuple(key for key, value in entries.items() if value is None)
    kept = {key: checked_text(f"{name}[{key!r}]", value) for key, value in entries.items() if value is not None}
    return kept, removed


def checked_metrics(metrics: "Mapping[str, float | SupportsItem | None]") -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the metrics to set, and those to remove, which are None.

    Raises:
        InvalidError: It is not a mapping of strings to finite numbers or None.
    """
    entries = _mapping("metrics", metrics)
    removed = tuple(key for key, value in entries.items() if value is None)
    return {key: _metric(key, value) for key, value in entries.items() if value is not None}, removed


def _mapping(name: str, given: object) -> dict[str, object]:
    if not isinstance(given, Mapping):
        raise InvalidError(f"{name} is {given!r}; it must be a mapping")
    return {checked_text(f"the key {key!r} of {name}", key): value for key, value in given.items()}


def _metric(key: str, value: object) -> float:
    item = getattr(value, "item", None)
    try:
        plain = item() if callable(item) else value
        if isinstance(plain, int | float) and math.isfinite(plain):
            return float(plain)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # an array with several elements, or a huge number
        pass
    raise InvalidError(f"metrics[{key!r}] is {value!r}; it must be a finite number")


def asked_for(
    model: "str | VersionInfo | Version", version: "SupportsIndex | str | VersionInfo | Version"
) -> tuple[str, int | str, VersionInfo | None]:
    """Return the model and the number or alias of the requested version, and the version itself if the caller gave it.

    Raises:
        InvalidError: An argument has a wrong type, or the arguments contradict each other.
        NotFoundError: No version can have such a number.
    """
    model = model.info if isinstance(model, Version) else model
    version = version.info if isinstance(version, Version) else version
    if isinstance(version, VersionInfo):
        model_id = model.model_id if isinstance(model, VersionInfo) else checked_id(model)
        if model_id != version.model_id:
            raise InvalidError(f"the version belongs to model {quoted(version.model_id)}, not to {quoted(model_id)}")
        model = version
    elif not isinstance(model, VersionInfo):
        return checked_id(model), checked_key(model, version), None
    elif checked_key(model.model_id, version) not in (LATEST, model.number):
        raise InvalidError(f"both version {model.number} and version {version} are asked for; give one of them")
    return model.model_id, model.number, model
