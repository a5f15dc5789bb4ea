"""Paths as people write them."""

import os


def expanded(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """Return a path with the home directory in place of a leading ``~`` or ``~user``, as a shell has it.

    A shell replaces them only at the beginning of a word, so neither in ``--flag=~/x`` nor in the value of a variable
    that is quoted. What is not known stays as it is.
    """
    return os.path.expanduser(os.fsdecode(path))
