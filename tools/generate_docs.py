"""Write the tables of settings into the documents; with `--check`, only tell whether they are up to date.

A document has each table between two comments: ``<!-- settings -->`` and ``<!-- /settings -->`` for the registry,
``<!-- directory settings -->`` and ``<!-- /directory settings -->`` for the Directory.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable

from cogment_model_registry.settings import DirectorySettings, ServiceSettings, Setting, Settings, all_settings

ROOT = pathlib.Path(__file__).parent.parent


def short_table() -> str:
    """Return the table of the README: what there is, and the defaults."""
    rows = [
        f"| `--{setting.name}` | `{setting.environment}` | {setting.default_text} |"
        for setting in all_settings(Settings)
    ]
    return "\n".join(["| flag | environment variable | default |", "|---|---|---|", *rows])


def reference(settings_class: type[ServiceSettings]) -> str:
    """Return the reference of all settings of a class."""
    return "\n\n".join(section(setting) for setting in all_settings(settings_class))


def section(setting: Setting) -> str:
    """Return the section of the reference on one setting."""
    example = f"--{setting.name}" if setting.is_switch else f"--{setting.name}={setting.kind.placeholder}"
    return "\n".join(
        [
            f"### `{setting.name}`",
            "",
            setting.help,
            "",
            f"- flag: `{example}`",
            f"- environment variable: `{setting.environment}`",
            f"- allowed: {setting.kind.allowed}",
            f"- default: {setting.default_text}",
        ]
    )


def registry_reference() -> str:
    """Return the reference of the registry's settings."""
    return reference(Settings)


def directory_reference() -> str:
    """Return the reference of the Directory's settings."""
    return reference(DirectorySettings)


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"settings": short_table},
    "docs/configuration.md": {"settings": registry_reference, "directory settings": directory_reference},
}
"""What to write into each document, by the name in the comments around it."""


def filled(document: str) -> str:
    """Return the text of a document with its tables made anew."""
    text = (ROOT / document).read_text()
    for name, make in DOCUMENTS[document].items():
        parts = re.split(rf"(<!-- /?{name} -->)", text)
        if parts[1::2] != [f"<!-- {name} -->", f"<!-- /{name} -->"]:
            raise SystemExit(f"{document} must have the comments of one table of {name}")
        parts[2] = f"\n{make()}\n"
        text = "".join(parts)
    return text


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a document is out of date")
    check = parser.parse_args().check
    for document in DOCUMENTS:
        text = filled(document)
        if text == (ROOT / document).read_text():
            continue
        if check:
            print(f"{document} is out of date: run `make docs`", file=sys.stderr)
            return 1
        (ROOT / document).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
