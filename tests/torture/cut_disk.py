"""What a power cut may leave of file operations.

This model assumes only what file systems promise:

- a change of names in a directory (create, rename, remove) is certain once that directory was synced after it;
- the bytes written to a file are certain once that file was synced after them;
- any part of the rest may be lost, in any order; only a rename is atomic. A rename that was kept shows the file under
  its new name even if the creation under the old name was lost.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from random import Random

from tests.torture.recorded_files import Directory, File, NameChange, Node, Operation, Patch, RecordedFiles, Sync, Write

Tree = dict[str, bytes | None]
"""The content of a directory: the bytes of files by their relative path, None for directories."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What a power cut may leave.

    Attributes:
        tree: The files and directories.
        lost: The operations whose effect is lost.
    """

    tree: Tree
    lost: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Choice:
    """One possible outcome of one uncertain operation: whether names changed, or the bytes of a file."""

    subject: NameChange | File
    content: bytes | None
    lost: str


class Disk:
    """The certain and the uncertain state of a disk after some of the operations of a history; at first after none.

    Args:
        files: The operations.
    """

    def __init__(self, files: RecordedFiles) -> None:
        self._root = files.root
        self._names, self._bytes = files.first()
        self._changes: list[NameChange] = []  # the uncertain ones, in their order
        self._writes: dict[File, list[bytes]] = {}
        self._patches: dict[File, list[Patch]] = {}

    def perform(self, operation: Operation) -> None:
        """Perform the next operation of the history."""
        match operation:
            case NameChange():
                self._changes.append(operation)
            case Write(file, data):
                self._writes.setdefault(file, []).append(data)
            case Patch(file):
                self._patches.setdefault(file, []).append(operation)
            case Sync(File() as file):
                self._bytes[file] = self._bytes.get(file, b"") + b"".join(self._writes.pop(file, []))
                self._bytes[file] = _patched(self._bytes[file], self._patches.pop(file, []))
            case Sync(directory):
                for change in self._changes:
                    if change.directory is directory:
                        change.change(self._names.setdefault(change.directory, {}))
                self._changes = [change for change in self._changes if change.directory is not directory]
                self._forget_what_is_gone()

    def _forget_what_is_gone(self) -> None:
        """Drop uncertain changes of directories and files that certainly have no name any more."""
        named: set[Node | None] = {self._root}
        named.update(node for entries in self._names.values() for node in entries.values())
        named.update(change.node for change in self._changes)
        self._names = {directory: entries for directory, entries in self._names.items() if directory in named}
        self._changes = [change for change in self._changes if change.directory in named]
        self._writes = {file: parts for file, parts in self._writes.items() if file in named}
        self._patches = {file: patches for file, patches in self._patches.items() if file in named}

    def remains(self, random: Random, limit: int, last: Operation | None = None) -> Iterator[Remains]:
        """Yield the states that a power cut may leave now: all if there are at most `limit`, otherwise a sample.

        Args:
            random: Chooses where writes are torn, the garbage, and the sample.
            limit: About how many states to yield at most.
            last: An operation whose effect is kept in all states; the states without it are those before it.
        """
        choices = [
            [_Choice(change, b"", ""), *([] if change is last else [_Choice(change, None, str(change))])]
            for change in self._changes
        ]
        choices += [self._outcomes(file, random) for file in self._writes]
        choices += [self._outcomes_of_patches(file, random) for file in self._patches]
        for choice in _combinations(choices, random, limit):
            yield Remains(self._tree(choice), [part.lost for part in choice if part.lost])

    def _outcomes(self, file: File, random: Random) -> list[_Choice]:
        """Return the possible bytes of a file whose last writes are uncertain."""
        certain = self._bytes.get(file, b"")
        parts = self._writes[file]
        added = b"".join(parts)
        first = len(parts[0])
        torn = random.randrange(len(added))
        outcomes = {
            "": added,
            f"all {len(added)} bytes of a file": b"",
            f"bytes of a file after the first {torn} of {len(added)}": added[:torn],
            f"all {len(added)} bytes of a file, which has zeros instead": bytes(len(added)),
            f"all {len(added)} bytes of a file, which has garbage instead": random.randbytes(len(added)),
        }
        if len(parts) > 1:
            outcomes[f"the first {first} bytes of a file, but not those after them"] = bytes(first) + added[first:]
        return [_Choice(file, certain + data, lost) for lost, data in outcomes.items()]

    def _outcomes_of_patches(self, file: File, random: Random) -> list[_Choice]:
        """Return the possible bytes of a file if any of its last patches may be lost or torn."""
        certain = self._bytes.get(file, b"")
        patches = self._patches[file]
        first = random.randrange(len(patches))
        lost = random.randrange(len(patches))
        some = [patch for patch in patches if random.random() < 0.5]
        torn = patches[-1]
        if torn.data:
            torn = replace(torn, data=torn.data[: random.randrange(len(torn.data))])
        outcomes = {
            "": patches,
            f"all {len(patches)} patches of a file": [],
            f"patches of a file after the first {first} of {len(patches)}": patches[:first],
            f"patch {lost} of {len(patches)} of a file": [*patches[:lost], *patches[lost + 1 :]],
            f"all but {len(some)} of {len(patches)} patches of a file": some,
            f"the end of the last one of {len(patches)} patches of a file": [*patches[:-1], torn],
        }
        return [_Choice(file, _patched(certain, kept), lost) for lost, kept in outcomes.items()]

    def _tree(self, choice: Sequence[_Choice]) -> Tree:
        names = {directory: dict(entries) for directory, entries in self._names.items()}
        contents: dict[File, bytes] = {}
        for part in choice:
            if isinstance(part.subject, File):
                contents[part.subject] = part.content or b""
            elif part.content is not None:
                part.subject.change(names.setdefault(part.subject.directory, {}))
        tree: Tree = {}

        def add(directory: Directory, path: str) -> None:
            for name, node in names.get(directory, {}).items():
                if isinstance(node, File):
                    tree[path + name] = contents.get(node, self._bytes.get(node, b""))
                else:
                    tree[path + name] = None
                    add(node, f"{path}{name}/")

        add(self._root, "")
        return tree


def _patched(content: bytes, patches: Sequence[Patch]) -> bytes:
    for patch in patches:
        content = patch.apply(content)
    return content


def _combinations(choices: Sequence[Sequence[_Choice]], random: Random, limit: int) -> Iterator[Sequence[_Choice]]:
    """Yield every combination of the choices if there are not too many, otherwise the most different and a sample."""
    if prod(len(options) for options in choices) <= limit:
        yield from itertools.product(*choices)
        return
    for base in (0, -1):  # everything is kept, or nothing; then all but one
        whole = [options[base] for options in choices]
        yield whole
        for position, options in enumerate(choices):
            for option in options:
                yield [*whole[:position], option, *whole[position + 1 :]]
    for _ in range(limit // 2):
        yield [random.choice(options) for options in choices]


def lay_out(tree: Tree, place: Path) -> None:
    """Write a tree to real files and directories."""
    place.mkdir()
    for path, content in tree.items():  # a directory comes before its entries
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)
