"""The examples of docs/command_line.md run in order with real servers, and their output is compared with the page."""

import re
from pathlib import Path

import click
import pytest

from tests import pages
from tests.ports import free_ports
from tools.generate_docs import commands

PAGE = "docs/command_line.md"

RUN_SECONDS = 300  # it takes 30 seconds on an idle machine
DOCUMENTED_PORTS = ("9002", "9005")


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_examples_print_the_output_on_the_page(tmp_path: Path) -> None:
    ports = dict(zip(DOCUMENTED_PORTS, map(str, free_ports(len(DOCUMENTED_PORTS))), strict=True))
    pages.assert_as_documented(PAGE, tmp_path, ports, RUN_SECONDS)


def test_every_command_has_its_help_and_an_example_on_the_page() -> None:
    shown = re.findall(r"^<!-- help (.*) -->$", pages.text_of(PAGE), re.MULTILINE)
    assert sorted(shown) == sorted(" ".join(words) for words in commands())
    used = [example.command for example in pages.examples(PAGE)]
    for words, context in commands().items():
        if not isinstance(context.command, click.Group):
            assert any(re.search(rf"\b{' '.join(words)}( |$)", command) for command in used), words


def test_every_block_is_run_or_exempted() -> None:
    languages = pages.languages(PAGE)
    assert languages == {"console", "sh", "text"}  # text: help; sh: commands that enable completion
    completions = pages.blocks(PAGE, "sh")
    assert all(f"_COGMENT_COMPLETE={shell}_source cogment" in "".join(completions) for shell in ("bash", "zsh", "fish"))
    assert len(completions) == 3
