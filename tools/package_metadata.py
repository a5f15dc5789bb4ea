"""Build hook: the address of the repository in the metadata of the package, and in the links of its description.

A package index shows README.md without the files next to it, so links need addresses there. The address of the
repository is `REPOSITORY_URL`, or else the address from which the working copy was cloned. Without one, the package has
no address and the links stay unchanged.
"""

import os
import pathlib
import re
import subprocess
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "REPOSITORY_URL"

_ADDRESS = re.compile(
    r"(?:https?://|ssh://|)(?:[^@/]*@)?"  # a scheme, and a name with a password
    r"(\w[\w-]*(?:\.[\w-]+)+)(?::\d+(?=/))?"  # a host, and a port
    r"[:/](.+?)(?:\.git)?/?"  # a path
)


def repository_url(root: pathlib.Path) -> str:
    """Return the address of the repository, without a name or password in it; empty if none is known."""
    source = root / "PKG-INFO"  # in a source distribution, which has no git
    if os.environ.get(VARIABLE):
        address = os.environ[VARIABLE]
    elif source.exists():
        found = re.search(r"^Project-URL: Repository, (\S+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
        address = found[1] if found else ""
    else:
        address = _origin(root)
    parts = _ADDRESS.fullmatch(address)
    return f"https://{parts[1]}/{parts[2]}" if parts else ""


def _origin(root: pathlib.Path) -> str:
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        return ""


def with_addresses(page: str, url: str) -> str:
    """Return the text of a page with addresses in place of relative links."""
    if not url:
        return page
    page = re.sub(r"(!\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{url}/raw/HEAD/", page)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?![a-z]+:|#)", rf"\1{url}/blob/HEAD/", page)


class AddressHook(MetadataHookInterface):
    """Sets `urls` and `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add them to the metadata."""
        root = pathlib.Path(self.root)
        url = repository_url(root)
        page = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_addresses(page, url)}
        pages = {"Documentation": "docs/README.md", "Changelog": "CHANGELOG.md"}
        metadata["urls"] = {
            **({"Repository": url} if url else {}),
            **{name: f"{url}/blob/HEAD/{path}" for name, path in pages.items() if url},
        }
