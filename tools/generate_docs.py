"""Write the tables of settings into the documents; with `--check`, only tell whether they are up to date.

A document has the table between two comments, ``<!-- settings -->`` and ``<!-- /settings -->``.
"""

import argparse
import pathlib
import re
import sys

from cogment_model_registry.settings import Setting, Settings, all_settings

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/configuration.md")


def short_table() -> str:
    """Return the table of the README: what there is, and the defaults."""
    rows = [
        f"| `--{setting.name}` | `{setting.environment}` | {setting.default_text} |"
        for setting in all_settings(Settings)
    ]
    return "\n".join(["| flag | environment variable | default |", "|---|---|---|", *rows])


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


def filled(document: str) -> str:
    """Return the text of a document with its table made anew."""
    text = (ROOT / document).read_text()
    made = (
        short_table()
        if document == "README.md"
        else "\n\n".join(section(setting) for setting in all_settings(Settings))
    )
    pattern = r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)"
    new, count = re.subn(pattern, lambda _match: made + "\n", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{document} must have the comments of one table of settings")
    return new


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
