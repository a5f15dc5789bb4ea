"""Versions that are trees of NumPy arrays: nested dicts, lists and tuples of arrays and scalars.

    from cogment_model_registry import ModelRegistry, numpy

    with ModelRegistry("grpc://localhost:9002") as registry:
        numpy.publish(registry, "policy", {"weight": weight, "bias": bias})
        version, weights = numpy.load(registry, "policy")

The bytes are safetensors, so nothing in them is ever executed. Versions that PyTorch or JAX wrote can be read too: a
state dict is a dict whose keys have dots. With the client for asyncio, use `encode` and `decode`.
"""

from typing import TYPE_CHECKING, Any, TypeVar, overload

from cogment_model_registry.client.arguments import LATEST, UserData
from cogment_model_registry.client.blocking import ModelRegistry
from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.versions import VersionInfo

try:
    import numpy as np
    import numpy.typing as npt

    from cogment_model_registry.frameworks import arrays, tracking, trees
    from cogment_model_registry.frameworks.tracking import Tracked, TrackOptions
    from cogment_model_registry.frameworks.versions import Contents, Encoded, FitOptions, Loaded, fetch, upload
except ImportError as error:
    message = 'this needs NumPy: pip install "cogment-model-registry[numpy]"'
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from typing import Unpack  # from Python 3.11 on

    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

__all__ = ["Encoded", "Loaded", "Tracked", "decode", "encode", "load", "publish", "store", "track"]

_T = TypeVar("_T")


def encode(
    tree: object,
    *,
    dtype: npt.DTypeLike | None = None,
    prefix: str = "",
    user_data: UserData | None = None,
) -> Encoded:
    """Return what to upload for a tree: the bytes of a version, and its `user_data`.

    Args:
        tree: A dict (or other mapping), list, tuple or named tuple of trees; an array, a scalar, or None. Keys are
            texts or ints. A named tuple comes back as a dict; an array that is in the tree twice is written once.
        dtype: What arrays of floating-point numbers are converted to; others stay as they are.
        prefix: Which part to take, by the keys to it with dots between: ``"actor"`` takes ``tree["actor"]``. What is
            written is as if the part had been the whole: without the prefix.
        user_data: Entries of the version's user_data in addition to `format` and `framework`.

    Raises:
        InvalidError: The tree has something else in it, or no such part; or `user_data` has a reserved key.
    """
    return _contents(tree, dtype=dtype, prefix=prefix, user_data=user_data).joined()


def _contents(
    tree: object,
    *,
    dtype: npt.DTypeLike | None = None,
    prefix: str = "",
    user_data: UserData | None = None,
) -> Contents:
    """Return the version of a tree; see `encode`."""
    part = trees.select_part(tree, prefix, trees.expand_named_tuple)
    structure, leaves = trees.take_apart(part, trees.expand_named_tuple)
    return arrays.contents(structure, leaves, dtype=dtype, framework="numpy", user_data=user_data)


@overload
def decode(data: "Buffer", *, dtype: npt.DTypeLike | None = None, prefix: str = "") -> Any: ...


@overload
def decode(data: "Buffer", *, into: object, prefix: str = "", strict: bool = True) -> None: ...


def decode(
    data: "Buffer",
    *,
    into: object = None,
    dtype: npt.DTypeLike | None = None,
    prefix: str = "",
    strict: bool = True,
) -> Any:
    """Return the tree of a version, or copy it into the arrays of another one.

    Args:
        data: The bytes of the version. The arrays of the result share memory that may be written to, such as that of a
            bytearray; of bytes they are copies, and with a `prefix`, too.
        into: A tree of arrays that get the values, and keep their types. It may be of other nodes, such as named
            tuples: arrays are matched by their names, which are their keys with dots between. None of them is changed
            unless all fit.
        dtype: What arrays of floating-point numbers are converted to, without `into`.
        prefix: Which part to take, as for `encode`; the names are then those without the prefix.
        strict: Whether `into` must have the same names, or may have more or fewer.

    Returns:
        The tree, with arrays that may be written to; None with `into`.

    Raises:
        InvalidError: The bytes are not such a tree, or do not fit.
    """
    tree = arrays.decode(data, dtype=dtype, prefix=prefix, is_copied=into is None)
    if into is None:
        return tree
    _copy(tree, into, strict=strict)
    return None


def _copy(tree: object, into: object, *, strict: bool) -> None:
    stored = trees.name_leaves(tree, trees.expand_named_tuple)
    wanted = trees.name_leaves(into, trees.expand_named_tuple)
    for name, target in wanted.items():
        if not isinstance(target, np.ndarray) or not target.flags.writeable:
            raise InvalidError(f"{quoted(name)} cannot be copied into: it is not a writable array")
    stored = {name: np.asarray(leaf) for name, leaf in stored.items()}
    common = trees.check_fit(
        {name: array.shape for name, array in stored.items()},
        {name: array.shape for name, array in wanted.items()},
        strict=strict,
    )
    for name in common:
        if not arrays.may_become(stored[name].dtype, wanted[name].dtype):
            raise InvalidError(f"{quoted(name)} has elements of type {stored[name].dtype}, not {wanted[name].dtype}")
    for name in common:
        np.copyto(wanted[name], stored[name], casting="unsafe")


def publish(
    registry: ModelRegistry,
    model_id: str,
    tree: object,
    *,
    archived: bool = False,
    **options: "Unpack[arrays.PublishOptions]",
) -> VersionInfo:
    """Publish a tree as a version of a model, from the memory of its arrays: they must not change during the call.

    Args:
        registry: The client.
        model_id: The model, which is created if it does not exist.
        tree: As for `encode`.
        archived: Whether to archive the version, as `store` does.
        options: What `encode` takes: `dtype`, `prefix` and `user_data`; and what `ModelRegistry.publish` takes:
            `tags`, `metrics`, `alias`, `create`, `sign`, `timeout` and `progress`.

    Raises:
        InvalidError: As for `encode`; and the errors of `ModelRegistry.publish`.
    """
    return upload(_contents, registry, model_id, tree, archived=archived, options=options)


def store(
    registry: ModelRegistry, model_id: str, tree: object, **options: "Unpack[arrays.PublishOptions]"
) -> VersionInfo:
    """Store a tree as an archived version of a model; see `publish`."""
    return publish(registry, model_id, tree, archived=True, **options)


def track(registry: ModelRegistry, model_id: str, into: _T, **options: "Unpack[TrackOptions]") -> Tracked[_T]:
    """Return a context manager that follows the latest version of a model, and copies it into arrays on demand.

    A thread fetches each new version; `Tracked.update` copies it, in your thread, between two steps.

    Args:
        registry: The client.
        model_id: The model, which need not exist yet.
        into: A tree of arrays, as for `decode`: the arrays stay, and none is changed unless all fit.
        options: What `ModelRegistry.track` takes: `archived`, `alias`, `verify`, `consumer`, `labels` and
            `ttl_seconds`; a consumer is active once a version was loaded. And what `decode` takes: `prefix` and
            `strict`.
    """
    of_track, of_decode = tracking.split(options)

    def load_into(data: memoryview) -> _T:
        decode(data, into=into, **of_decode)
        return into

    return Tracked(registry, model_id, into, stage=memoryview, load=load_into, options=of_track)


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int | str = LATEST,
    *,
    into: object,
    **options: "Unpack[FitOptions]",
) -> VersionInfo: ...


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int | str = LATEST,
    **options: "Unpack[arrays.LoadOptions]",
) -> Loaded[Any]: ...


def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int | str = LATEST, *, into: Any = None, **options: Any
) -> Loaded[Any] | VersionInfo:
    """Retrieve a version: return its tree, or copy it into the arrays of another one.

    Args:
        registry: The client.
        model: The id of the model; or the version itself.
        version: The number of the version, -1 for the latest, -2 for the one before; or an alias.
        into: As for `decode`.
        options: What `decode` takes: `dtype` and `prefix`, or `strict` with `into`; `archived`, whether only archived
            versions count; `verify`, the keys of which one must have signed it; `timeout`, the seconds that
            each call may take; and `progress`, how to report the transfer.

    Returns:
        The version and the tree; with `into`, the version alone.

    Raises:
        InvalidError: The version is not such a tree, or does not fit.
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    loaded = fetch(decode, registry, model, version, into=into, **options)
    return loaded if into is None else loaded.version
