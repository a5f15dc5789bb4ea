"""docs/architecture.md names every module in its folder, and has the layers that import-linter checks."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "src" / "cogment_model_registry"
BLOCKS = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE | re.DOTALL)


def named_modules() -> Iterator[str]:
    """Yield the modules that the map names, as paths below the package."""
    folders: list[tuple[int, str]] = []
    for line in BLOCKS[0].splitlines()[1:]:
        indent = len(line) - len(line.lstrip())
        while folders and folders[-1][0] >= indent:
            folders.pop()
        names = re.match(r"\s*((?:[a-z_0-9]+(?:\.py|/) ?)+)", line)
        for name in names[1].split() if names else ():
            if name.endswith("/"):
                folders.append((indent, name))
            else:
                yield "".join(folder for _, folder in folders) + name


def test_it_names_every_module() -> None:
    existing = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    modules = {path for path in existing if "_generated" not in path and not path.endswith("/__init__.py")}
    named = [*named_modules()]
    assert (modules - {*named}, {*named} - modules) == (set(), set())
    assert len(named) == len(modules)


def test_its_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [layer.split(" : ") for layer in contracts[0]["layers"]]
    assert [sorted(line.split(", ")) for line in BLOCKS[1].splitlines()] == [sorted(layer) for layer in checked]
