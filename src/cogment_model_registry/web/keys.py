"""Which version a part of a path means."""

import re

_NUMBER = re.compile(r"-?[0-9]{1,10}")


def key_of(text: str) -> int | str:
    """Return what names a version: its number, -n for the n-th from the last, also for ``latest``, or an alias.

    Aliases are neither numbers nor ``latest``.
    """
    if _NUMBER.fullmatch(text):
        return int(text)
    return -1 if text == "latest" else text
