"""The standard streams of a command, made safe: none of them is missing, and each takes any text."""

import codecs
import contextlib
import encodings.ascii
import io
import json
import os
import sys

_ASCII = "escaped_ascii"
"""ASCII by another name."""


def prepare() -> None:
    """Prepare the standard streams of this process."""
    _replace_closed()
    codecs.register(_find_codec)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # click takes ASCII for an oversight, and writes UTF-8 to a terminal that may take some of it for commands.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors="backslashreplace")


def _replace_closed() -> None:
    """Open the null device for standard streams that are closed.

    Otherwise the next file or socket would get the number, and with it what some library writes to standard error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    info = encodings.ascii.getregentry()
    info.name = _ASCII
    return info


def json_text(document: object, indent: int | None = None) -> str:
    """Return a JSON document that standard output can take: escapes that an encoding brings are none of JSON's."""
    encoding = sys.stdout.encoding if sys.stdout is not None else "utf-8"
    is_unicode = codecs.lookup(encoding or "utf-8").name == "utf-8"
    return json.dumps(document, ensure_ascii=not is_unicode, indent=indent)
