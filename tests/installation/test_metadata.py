"""What the metadata of the package says: addresses, links, and the extra for conformance suites."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from tools.package_metadata import VARIABLE, repository_url

ROOT = Path(__file__).parent.parent.parent
URL = "https://git.example.org/team/registry"


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The metadata that a build would write."""
    monkeypatch.setenv(VARIABLE, URL)
    return ProjectMetadata(str(ROOT), PluginManager()).core


def test_the_package_says_where_its_repository_is(core: Any) -> None:
    assert core.urls["Repository"] == URL
    for name in ("Documentation", "Changelog"):
        assert (ROOT / core.urls[name].removeprefix(f"{URL}/blob/HEAD/")).is_file()


def test_the_links_of_the_description_are_addresses_of_files(core: Any) -> None:
    """A package index shows the description without the files next to it."""
    assert core.readme_content_type == "text/markdown"
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", core.readme)
    assert {mark for mark, _ in links} == {"", "!"}
    for mark, link in links:
        kind = "raw" if mark else "blob"
        assert link.startswith(f"{URL}/{kind}/HEAD/"), link
        assert (ROOT / link.removeprefix(f"{URL}/{kind}/HEAD/").partition("#")[0]).is_file(), link


ORIGINS = {
    "https://git.example.org/team/registry.git": URL,
    "https://git.example.org/team/registry/": URL,
    "https://name:secret@git.example.org/team/registry.git": URL,
    "git@git.example.org:team/registry.git": URL,
    "ssh://git@git.example.org:2222/team/registry.git": URL,
    "https://git.example.org:8443/team/registry": URL,
    "/srv/git/registry.git": "",
    "../registry": "",
    "file:///srv/git.example/registry": "",
    "localhost:registry": "",
    "": "",
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_address_is_that_of_the_clone_without_passwords(
    origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    if origin:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", origin], check=True)
    assert repository_url(tmp_path) == ORIGINS[origin]


def test_a_source_distribution_keeps_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "PKG-INFO").write_text(f"Name: registry\nProject-URL: Repository, {URL}\n")
    assert repository_url(tmp_path) == URL


def test_the_extra_for_conformance_suites_has_what_they_import() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["testing"]
    assert extra[0] == "cogment-model-registry[server]"
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "src/cogment_model_registry/testing").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    others = imported - sys.stdlib_module_names - {"cogment_model_registry"}
    assert others == {re.split("[<>=]", each)[0] for each in extra[1:]} - {"pytest-asyncio"}
