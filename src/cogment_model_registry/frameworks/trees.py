"""Trees of arrays: taken apart into named arrays and a structure in JSON, and put together again.

A tree is a dict, a list or a tuple of trees, None, or a leaf. A framework may add kinds of nodes, which come back
as dicts. Each array has a name, which is the path to it with dots: ``{"actor": [{"bias": b}]}`` has ``actor.0.bias``.
Names alone cannot distinguish a list from a dict, nor keys with dots from paths, so the structure records that:

    structure = null                                 None
              | "name"                               an array
              | ["bool" | "int" | "float", "name"]   a scalar of Python, kept as an array without dimensions
              | ["scalar", "name"]                   a scalar of NumPy
              | ["dict", [[key, structure], ...]]    in the order of its items; a key is a text or an int
              | ["list" | "tuple", [structure, ...]]

A leaf that occurs twice in a tree is one array, with one name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.frameworks.tensor_files import RESERVED_NAME

Key: TypeAlias = str | int

Structure: TypeAlias = str | list[Any] | None
"""The JSON form of a tree; see the module."""

Children: TypeAlias = list[tuple[Key, object]]

Expand: TypeAlias = Callable[[object], Children | None]
"""Returns the keys and children of a node that is neither dict, list nor tuple; None for a leaf."""

_SCALARS: dict[type, str] = {bool: "bool", int: "int", float: "float"}

_NAMES_SHOWN = 5


def expand_named_tuple(node: object) -> Children | None:
    """Return the fields of a named tuple, None for anything else."""
    fields = getattr(node, "_fields", None)
    if not isinstance(node, tuple) or fields is None:
        return None
    return list(zip(fields, node, strict=True))


def take_apart(
    tree: object, expand: Expand, identity: Callable[[object], object] = id
) -> tuple[Structure, dict[str, object]]:
    """Return the structure of a tree, and its leaves by their names.

    Args:
        tree: The tree.
        expand: Knows the other kinds of nodes.
        identity: Returns an equal value for two leaves that are the same.

    Raises:
        InvalidError: A key is neither a text nor an int, or the tree contains itself.
    """
    apart = _Apart(expand, identity)
    return apart.structure(tree, ()), apart.leaves


_DEPTH_MAX = 100
"""How deeply a tree may be nested: far more than models need, and far less than Python's limit."""


def _check_depth(depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise InvalidError(f"the tree is nested more than {_DEPTH_MAX} times, or contains itself")


class _Apart:
    """A tree that is being taken apart."""

    def __init__(self, expand: Expand, identity: Callable[[object], object]) -> None:
        self._expand = expand
        self._identity = identity
        self._names: dict[object, str] = {}
        self.leaves: dict[str, object] = {}

    def structure(self, node: object, path: tuple[Key, ...]) -> Structure:
        _check_depth(len(path))
        if node is None:
            return None
        items = _children(node, self._expand)
        if items is None:
            return self._leaf(node, path)
        if isinstance(node, list) or type(node) is tuple:
            return [type(node).__name__, [self.structure(child, (*path, key)) for key, child in items]]
        return ["dict", [[_checked_key(key, path), self.structure(child, (*path, key))] for key, child in items]]

    def _leaf(self, leaf: object, path: tuple[Key, ...]) -> Structure:
        kind = _SCALARS.get(type(leaf)) or ("scalar" if _is_numpy_scalar(leaf) else None)
        if kind is not None:
            return [kind, self._named(leaf, path)]
        identity = self._identity(leaf)
        if identity not in self._names:
            self._names[identity] = self._named(leaf, path)
        return self._names[identity]

    def _named(self, leaf: object, path: tuple[Key, ...]) -> str:
        # Text that is not Unicode goes to the structure only.
        name = dotted(path).encode("utf-8", "replace").decode()
        while name in self.leaves or name == RESERVED_NAME:
            name += "~"
        self.leaves[name] = leaf
        return name


def _is_numpy_scalar(leaf: object) -> bool:
    # Recognised by its names, since this module also works without NumPy.
    return any(kind.__name__ == "generic" and kind.__module__ == "numpy" for kind in type(leaf).__mro__)


def _children(node: object, expand: Expand) -> Children | None:
    """Return the keys and children of a node, in their order; None for a leaf."""
    expanded = expand(node)
    if expanded is not None:
        return expanded
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    return None


def _checked_key(key: object, path: tuple[Key, ...]) -> Key:
    if isinstance(key, str) or (isinstance(key, int) and not isinstance(key, bool)):
        return key
    message = f"a key of {quoted(dotted(path)) if path else 'the tree'} is of type {type(key).__name__}"
    raise InvalidError(f"{message}; it must be a string or an int")


def dotted(path: Iterable[object]) -> str:
    """Return the name of the node at a path of keys."""
    return ".".join(map(str, path))


def put_together(structure: object, make_leaf: Callable[[str, str], object]) -> Any:
    """Return the tree of a structure.

    Args:
        structure: The decoded JSON, which may be anything.
        make_leaf: Returns a leaf for its kind, which is "array", "bool", "int", "float" or "scalar", and its name.

    Raises:
        InvalidError: It is not a structure.
    """
    return _put_together(structure, make_leaf, 0)


def _put_together(structure: object, make_leaf: Callable[[str, str], object], depth: int) -> object:
    _check_depth(depth)
    match structure:
        case None:
            return None
        case str(name):
            return make_leaf("array", name)
        case ["bool" | "int" | "float" | "scalar" as kind, str(name)]:
            return make_leaf(kind, name)
        case ["list", [*children]]:
            return [_put_together(child, make_leaf, depth + 1) for child in children]
        case ["tuple", [*children]]:
            return tuple(_put_together(child, make_leaf, depth + 1) for child in children)
        case ["dict", [*items]]:
            return dict(_item(item, make_leaf, depth + 1) for item in items)
    raise InvalidError(f"the structure of the tree has {quoted(str(structure))}, which is malformed")


def _item(item: object, make_leaf: Callable[[str, str], object], depth: int) -> tuple[Key, object]:
    match item:
        case [str() | int() as key, child]:
            return key, _put_together(child, make_leaf, depth)
    raise InvalidError(f"the structure of the tree has {quoted(str(item))}, which is not an item of a dict")


def map_leaves(tree: object, change: Callable[[Any], object]) -> Any:
    """Return a tree of dicts, lists and tuples with other leaves; one that occurs twice is changed once."""
    return _mapped(tree, change, {})


# These are no functions inside of others: such a one refers to itself, so that only the garbage collector frees what
# they saw, which may be gigabytes.


def _mapped(node: object, change: Callable[[Any], object], changed: dict[int, object]) -> object:
    if node is None:
        return None
    if isinstance(node, dict):
        return {key: _mapped(child, change, changed) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_mapped(child, change, changed) for child in node)
    if id(node) not in changed:
        changed[id(node)] = change(node)
    return changed[id(node)]


def name_leaves(tree: object, expand: Expand) -> dict[str, Any]:
    """Return the leaves of a tree by the dotted paths to them, whatever the kinds of the nodes on the way.

    Raises:
        InvalidError: Two leaves have the same dotted path, such as those of ``{"a.b": x, "a": {"b": y}}``.
    """
    leaves: dict[str, object] = {}
    _add_leaves(tree, (), expand, leaves)
    return leaves


def _add_leaves(node: object, path: tuple[Key, ...], expand: Expand, leaves: dict[str, object]) -> None:
    _check_depth(len(path))
    items = [] if node is None else _children(node, expand)
    for key, child in items or []:
        _add_leaves(child, (*path, key), expand, leaves)
    if items is None:
        name = dotted(path)
        if name in leaves:
            raise InvalidError(f"two leaves of the tree are called {quoted(name)}")
        leaves[name] = node


def select_part(tree: object, prefix: str, expand: Expand) -> Any:
    """Return the part of a tree whose names begin with a prefix, as if it had been the whole: without the prefix.

    Args:
        tree: The tree.
        prefix: The name of a node, with or without a dot at its end; empty for the whole tree.
        expand: Knows the other kinds of nodes.

    Raises:
        InvalidError: No such part exists.
    """
    head = f"{prefix.removesuffix('.')}." if prefix else ""
    node = tree
    while head:
        items = _children(node, expand) or []
        flat = {key[len(head) :]: child for key, child in items if isinstance(key, str) and key.startswith(head)}
        if flat:
            return flat
        for key, child in items:
            if head.startswith(f"{key}."):
                node, head = child, head[len(f"{key}.") :]
                break
        else:
            raise InvalidError(
                f"no name begins with {quoted(prefix)}; the names are {listed(name_leaves(tree, expand))}"
            )
    return node


def check_fit(
    stored: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    strict: bool,
    optional: Iterable[str] = (),
) -> list[str]:
    """Return the names that two sets of named arrays have in common, if one can be copied into the other.

    Args:
        stored: The shapes of the arrays that are read.
        wanted: The shapes of those that get their values.
        strict: Whether both must have all names.
        optional: Names that may be missing in any case.

    Raises:
        InvalidError: It cannot; the message names the arrays that are missing, unexpected, or of another shape.
    """
    problems = []
    if strict:
        missing = wanted.keys() - stored.keys() - set(optional)
        unexpected = stored.keys() - wanted.keys()
        problems += [f"missing are {listed(sorted(missing))}"] if missing else []
        problems += [f"unexpected are {listed(sorted(unexpected))}"] if unexpected else []
    common = [name for name in wanted if name in stored]
    wrong = [name for name in common if tuple(stored[name]) != tuple(wanted[name])]
    for name in wrong[:_NAMES_SHOWN]:
        problems.append(f"{quoted(name)} has the shape {list(stored[name])}, not {list(wanted[name])}")
    if len(wrong) > _NAMES_SHOWN:
        problems.append(f"{len(wrong) - _NAMES_SHOWN} more have other shapes")
    if problems:
        raise InvalidError(f"the parameters do not fit: {'; '.join(problems)}")
    return common


def listed(names: Iterable[str]) -> str:
    """Return some names for a message."""
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return (", ".join(map(quoted, names[:_NAMES_SHOWN])) or "none") + more
