"""The links between the pages of the repository lead to files and headings that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT)) for folder in (".", "docs", "examples") for path in (ROOT / folder).glob("*.md")
)


def sections(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, section = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not section or section in sections(file), target


@pytest.mark.parametrize("page", ["docs/guarantees.md", "docs/security.md", "docs/threats.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    modules = {str(path.with_suffix("")).removesuffix("/__init__") for path in (ROOT / "tests").rglob("*.py")}
    names = set(re.findall(r"`((?:\w+/)*test_\w+|torture/\w+)`", (ROOT / page).read_text()))
    assert len(names) > 10
    assert {name for name in names if not any(module.endswith(f"/{name}") for module in modules)} == set()


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.(?:md|json))", (ROOT / "docs/README.md").read_text()))
    assert listed >= {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
