"""Files with a token, which may be replaced at any time."""

from cogment_model_registry.errors import SettingError
from cogment_model_registry.records.addresses import parse_token

AGAIN_SECONDS = 1.0
"""How soon a file that was replaced is read again."""

_FILE_MAX_BYTES = 64 * 1024
_HIDDEN = "***"
_ALLOWED = "one line of printable ASCII without spaces"


def read_token(name: str, path: str) -> str:
    """Return the token in a file that has nothing else but white space; blocks.

    Args:
        name: The setting or the argument that names the file.
        path: The file.

    Raises:
        SettingError: The file cannot be read, or has no token. The message does not show what it has.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MAX_BYTES)
    except OSError as error:
        raise SettingError(name, path, f"a file with a token ({error.strerror or error})") from None
    return checked_token(data.decode("ascii", "replace").strip(), f"the token in {path}")


def checked_token(token: str, name: str) -> str:
    """Return a token, if it can be one.

    Args:
        token: The token.
        name: Where it comes from, for the message.

    Raises:
        SettingError: It cannot. The message does not show it.
    """
    try:
        if not token or " " in token:
            raise ValueError(token)
        return parse_token(token)
    except ValueError:
        raise SettingError(name, _HIDDEN if token else "", _ALLOWED) from None
