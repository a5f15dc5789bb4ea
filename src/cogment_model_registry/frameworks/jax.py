"""Versions that are pytrees of JAX: the parameters of Flax, Haiku, Equinox or one's own.

    from cogment_model_registry import ModelRegistry, jax

    with ModelRegistry("grpc://localhost:9002") as registry:
        jax.publish(registry, "policy", parameters)
        version, parameters = jax.load(registry, "policy", like=parameters)

The bytes are safetensors, so nothing in them is ever executed. Versions that PyTorch or NumPy wrote can be read too: a
state dict is a dict whose keys have dots. With the client for asyncio, use `encode` and `decode`.
"""

from typing import TYPE_CHECKING, Any, TypeVar, overload

from cogment_model_registry.client.arguments import LATEST, UserData
from cogment_model_registry.client.blocking import ModelRegistry
from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.versions import VersionInfo

try:
    import jax
    import numpy as np
    import numpy.typing as npt

    from cogment_model_registry.frameworks import arrays, tracking, trees
    from cogment_model_registry.frameworks.tracking import Tracked, TrackOptions
    from cogment_model_registry.frameworks.versions import Contents, Encoded, FitOptions, Loaded, fetch, upload
except ImportError as error:
    message = 'this needs JAX: pip install "cogment-model-registry[jax]"'
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from typing import Unpack  # from Python 3.11 on

    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

__all__ = ["Encoded", "Loaded", "Tracked", "decode", "encode", "load", "publish", "store", "track"]

_T = TypeVar("_T")

_KEY_DATA = "key_data"
"""The name, below that of a key of `jax.random`, of the numbers that it consists of."""


def encode(
    tree: object,
    *,
    dtype: npt.DTypeLike | None = None,
    prefix: str = "",
    user_data: UserData | None = None,
) -> Encoded:
    """Return what to upload for a pytree: the bytes of a version, and its `user_data`.

    Args:
        tree: A pytree of arrays, scalars and None, on any device. Keys of dicts are texts or ints. Nodes that are
            neither dicts, lists nor tuples, such as named tuples, dataclasses and custom nodes, come back as dicts of
            their fields, or of the numbers of their children, unless `like` is given. An array that is in the tree
            twice is written once.
        dtype: What arrays of floating-point numbers are converted to; others stay as they are.
        prefix: Which part to take, by the keys to it with dots between: ``"params.actor"`` takes
            ``tree["params"]["actor"]``. What is written is as if the part had been the whole: without the prefix.
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
    """Return the version of a pytree; see `encode`."""
    structure, leaves = trees.take_apart(trees.select_part(tree, prefix, _expand), _expand)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            _check_array(name, leaf)
    return arrays.contents(structure, jax.device_get(leaves), dtype=dtype, framework="jax", user_data=user_data)


def _check_array(name: str, array: Any) -> None:
    """Refuse an array whose elements are not at hand."""
    if isinstance(array, jax.core.Tracer):
        raise InvalidError(f"{quoted(name)} is traced by a transformation such as jax.jit; call this outside of it")
    if array.is_deleted():
        raise InvalidError(f"{quoted(name)} was deleted, as jax.jit does with arguments that are donated")
    if not (array.is_fully_addressable or array.is_fully_replicated):
        raise InvalidError(
            f"{quoted(name)} has elements on devices of other processes; gather it in all processes with"
            " jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        )
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.extended):
        raise InvalidError(f"{quoted(name)} has elements of type {array.dtype}, which are neither numbers nor keys")


def _expand(node: object) -> trees.Children | None:
    """Return the children of a node that only JAX knows."""
    if isinstance(node, dict | list) or type(node) is tuple:
        return None
    if _is_key(node):
        return [(_KEY_DATA, jax.random.key_data(node))]
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda each: each is not node)[0]
    if len(children) == 1 and children[0][1] is node:
        return None
    return [(_key_of(path[0]), child) for path, child in children]


def _is_key(leaf: object) -> bool:
    """Return whether a leaf is a key of `jax.random`, or several; also an abstract one."""
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return is_array and jax.numpy.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _key_of(entry: object) -> trees.Key:
    """Return the key of one step of a path, which has it under another name for each kind of node."""
    for attribute in ("name", "key", "idx"):
        key = getattr(entry, attribute, None)
        if isinstance(key, str | int):
            return key
    return str(entry)


@overload
def decode(data: "Buffer", *, dtype: npt.DTypeLike | None = None, prefix: str = "") -> Any: ...


@overload
def decode(data: "Buffer", *, like: _T, prefix: str = "", strict: bool = True) -> _T: ...


def decode(
    data: "Buffer",
    *,
    like: Any = None,
    dtype: npt.DTypeLike | None = None,
    prefix: str = "",
    strict: bool = True,
) -> Any:
    """Return the pytree of a version.

    Args:
        data: The bytes of the version.
        like: A pytree whose nodes, types of elements and shardings the result has: the parameters so far, or what
            `jax.eval_shape` returns. Arrays are matched by their names, which are their keys with dots between.
        dtype: What arrays of floating-point numbers are converted to, without `like`.
        prefix: Which part to take, as for `encode`; the names are then those without the prefix.
        strict: Whether both must have the same names. Otherwise leaves that the version lacks are those of `like`, and
            leaves that `like` lacks are left out.

    Returns:
        The pytree. 64-bit elements become 32-bit ones unless JAX is set to use them (`jax_enable_x64`).

    Raises:
        InvalidError: The bytes are not such a tree, or do not fit.
    """
    tree = arrays.decode(data, dtype=dtype, prefix=prefix, is_copied=bool(prefix))
    if like is None:
        return trees.map_leaves(tree, _on_device)
    stored = trees.name_leaves(tree, trees.expand_named_tuple)
    paths, nodes = jax.tree_util.tree_flatten_with_path(like)
    names = [_name_of(path, leaf) for path, leaf in paths]
    wanted = dict(zip(names, (leaf for _, leaf in paths), strict=True))
    if len(wanted) < len(names):
        raise InvalidError("two leaves of `like` have the same name")
    common = trees.check_fit(
        {name: np.shape(leaf) for name, leaf in stored.items()},
        {name: _shape_of(leaf) for name, leaf in wanted.items()},
        strict=strict,
    )
    wanted.update([(name, _alike(name, stored[name], wanted[name])) for name in common])
    return jax.tree_util.tree_unflatten(nodes, wanted.values())


def _name_of(path: tuple[Any, ...], leaf: object) -> str:
    """Return the name that a version has for a leaf."""
    keys = [_key_of(entry) for entry in path]
    return trees.dotted([*keys, _KEY_DATA] if _is_key(leaf) else keys)


def _shape_of(leaf: Any) -> tuple[int, ...]:
    numbers = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return tuple(getattr(numbers, "shape", ()))


def _on_device(leaf: object) -> object:
    return jax.device_put(leaf) if isinstance(leaf, np.ndarray) else leaf


def _alike(name: str, leaf: object, template: Any) -> object:
    """Return a leaf with the type, and where it matters the sharding, of another one."""
    array = np.asarray(leaf)
    is_scalar = isinstance(template, bool | int | float)
    wanted = np.uint32 if _is_key(template) else type(template) if is_scalar else getattr(template, "dtype", None)
    if wanted is None:
        kind = type(template).__name__
        raise InvalidError(f"{quoted(name)} is of type {kind} in `like`; it must be an array or a scalar")
    if not arrays.may_become(array.dtype, np.dtype(wanted)):
        raise InvalidError(f"{quoted(name)} has elements of type {array.dtype}, not {np.dtype(wanted)}")
    if is_scalar:
        return type(template)(array.item())
    if _is_key(template):
        return jax.device_put(_key_of_data(array, template), getattr(template, "sharding", None))
    if isinstance(template, np.ndarray | np.generic):
        array = array.astype(template.dtype)
        return array if isinstance(template, np.ndarray) else array[()]
    array = array.astype(template.dtype, copy=False)
    return jax.device_put(array, getattr(template, "sharding", None))


def _key_of_data(array: Any, template: object) -> Any:
    """Return a key of `jax.random` of the kind of another one, which may be abstract."""
    kinds: list[Any] = []
    jax.eval_shape(lambda keys: kinds.append(jax.random.key_impl(keys)), template)
    return jax.random.wrap_key_data(array.astype(np.uint32, copy=False), impl=kinds[0])


def publish(
    registry: ModelRegistry,
    model_id: str,
    tree: object,
    *,
    archived: bool = False,
    **options: "Unpack[arrays.PublishOptions]",
) -> VersionInfo:
    """Publish a pytree as a version of a model.

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
    """Store a pytree as an archived version of a model; see `publish`."""
    return publish(registry, model_id, tree, archived=True, **options)


def track(registry: ModelRegistry, model_id: str, like: _T, **options: "Unpack[TrackOptions]") -> Tracked[_T]:
    """Return a context manager that follows the latest version of a model as pytrees like another one.

    A thread fetches and decodes each new version; `Tracked.update` makes it the `Tracked.value`, between two steps.

    Args:
        registry: The client.
        model_id: The model, which need not exist yet.
        like: A pytree, as for `decode`; it is the value until the first version comes.
        options: What `ModelRegistry.track` takes: `archived`, `alias`, `verify`, `consumer`, `labels` and
            `ttl_seconds`; a consumer is active once a version is the value. And what `decode` takes: `prefix` and
            `strict`.
    """
    of_track, of_decode = tracking.split(options)

    def stage(data: memoryview) -> _T:
        return decode(data, like=like, **of_decode)

    return Tracked(registry, model_id, like, stage=stage, load=lambda decoded: decoded, options=of_track)


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int | str = LATEST,
    *,
    like: _T,
    **options: "Unpack[FitOptions]",
) -> Loaded[_T]: ...


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int | str = LATEST,
    **options: "Unpack[arrays.LoadOptions]",
) -> Loaded[Any]: ...


def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int | str = LATEST, *, like: Any = None, **options: Any
) -> Loaded[Any]:
    """Retrieve a version, and return it with its pytree.

    Args:
        registry: The client.
        model: The id of the model; or the version itself.
        version: The number of the version, -1 for the latest, -2 for the one before; or an alias.
        like: As for `decode`.
        options: What `decode` takes: `dtype` and `prefix`, or `strict` with `like`; `archived`, whether only archived
            versions count; `verify`, the keys of which one must have signed it; `timeout`, the seconds that
            each call may take; and `progress`, how to report the transfer.

    Raises:
        InvalidError: The version is not such a tree, or does not fit.
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    return fetch(decode, registry, model, version, like=like, **options)
