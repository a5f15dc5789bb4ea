"""Sizes in bytes: their binary units, and their text for people.

Sizes for people have binary units everywhere, also in progress bars. Messages that compare sizes, and all output for
programs, have exact numbers of bytes.
"""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size_text(size_bytes: float) -> str:
    """Return a size with a binary unit, and one digit after the point unless it is in bytes."""
    if size_bytes < KIB:
        return f"{size_bytes:.0f} B"
    size = float(size_bytes)
    for unit in _UNITS:  # noqa: B007 # the last one is used below
        size /= KIB
        if size < 1023.95:  # a larger one would be shown as 1024.0
            break
    return f"{size:.1f} {unit}"
