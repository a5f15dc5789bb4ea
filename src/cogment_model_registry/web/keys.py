"""Versions in paths."""

import re

_NUMBER = re.compile(r"-?[0-9]{1,1000}")


def key_of(text: str) -> int | str:
    """Return the version in a part of a path: a number, -n for the n-th from the last (``latest`` is -1), or an alias.

    Aliases are neither numbers nor ``latest``.
    """
    if _NUMBER.fullmatch(text):
        return int(text)
    return -1 if text == "latest" else text
