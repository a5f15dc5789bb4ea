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

_ERRORS = "backslashreplace"
"""How to write what an encoding lacks."""


def prepare() -> None:
    """Prepare the standard streams of this process."""
    _replace_closed()
    codecs.register(_find_codec)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # click takes ASCII for an oversight, and writes UTF-8 to a terminal that may take some of it for commands.
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors=_ERRORS)


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
    return json.dumps(document, ensure_ascii=codecs.lookup(_encoding()).name != "utf-8", indent=indent)


def escaped(text: str) -> str:
    """Return a text as standard output shows it, where a character that its encoding lacks takes several."""
    return text.encode(_encoding(), _ERRORS).decode(_encoding())


def _encoding() -> str:
    return sys.stdout.encoding if sys.stdout is not None and sys.stdout.encoding else "utf-8"
