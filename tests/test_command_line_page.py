"""docs/command_line.md, run: its examples in order against real servers, and what they print held against the page.

The blocks marked `console` are one session: each line with a prompt is a command, and what follows is what it prints.
What is never the same twice is compared as the same word; a line ``[...]`` stands for any lines.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from tests.processes import clean_environment
from tools.generate_docs import commands

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/command_line.md").read_text()

RUN_SECONDS = 150  # it takes 25 on a machine that does nothing else
DOCUMENTED_PORTS = ("9002", "9005")

_NEVER_THE_SAME = (
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
    (r"\bprocess [0-9]+", "process N"),
    (r"Secret \[[^]]+\]", "Secret [...]"),
    (r"Service ID \[[0-9]+\]", "Service ID [N]"),
    (r"\b1[0-9]{18}\b", "NANOSECONDS"),  # after the ids, which may look the same
    (r"in [0-9.]+ s \([^)]*/s\)", "in a moment"),
    (r"(\(cogment-model-registry\) |cogment-model-registry +|\[__version\] = \[)[0-9.a-z]+", r"\1VERSION"),
)


@dataclass(frozen=True)
class Example:
    """A command of the page, and what the page says that it prints."""

    command: str
    output: str


def examples() -> list[Example]:
    """Return the examples of the page, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [Example(*part.split("\n", 1)) for part in found]


def run(commands: list[str], directory: Path) -> list[str]:
    """Return what each command prints, run in one shell with ports that are free, and told with those of the page."""
    ports = dict(zip(DOCUMENTED_PORTS, map(str, free_ports(len(DOCUMENTED_PORTS))), strict=True))
    mark = "----- end of a command -----"
    lines = []
    for command in commands:
        for documented, free in ports.items():
            command = re.sub(rf"\b{documented}\b", free, command)  # noqa: PLW2901
        lines += [command, f"printf '%s\\n' '{mark}'"]
    output_path = directory / "output"
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    session = directory / "session"
    session.mkdir()
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(lines)],
            cwd=session,
            env={**clean_environment(), "PATH": path, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a failure leaves running can be ended as a whole
        )
        try:
            process.wait(RUN_SECONDS)
        finally:
            left = end_session(process)
    text = output_path.read_text()
    assert not left, f"the page leaves processes behind, after:\n{text}"
    for documented, free in ports.items():
        text = re.sub(rf"\b{free}\b", documented, text)
    return text.split(f"{mark}\n")[:-1]


def end_session(process: "subprocess.Popen[bytes]") -> bool:
    """Kill what is left of a process and those that it started, and return whether anything was."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    process.wait()
    return True


def free_ports(count: int) -> list[int]:
    """Return distinct ports that are free."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def stable(text: str) -> str:
    """Return a text with what is never the same twice as the same words."""
    for pattern, word in _NEVER_THE_SAME:
        text = re.sub(pattern, word, text)
    return text


def is_as_documented(output: str, documented: str) -> bool:
    """Return whether a command printed what the page says."""
    pattern = r"(?:.*\n)*?".join(re.escape(part) for part in stable(documented).split("[...]\n"))
    return re.fullmatch(pattern, stable(output)) is not None


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_examples_print_what_the_page_says(tmp_path: Path) -> None:
    outputs = run([example.command for example in examples()], tmp_path)
    assert len(outputs) == len(examples()), outputs[-1:]
    for example, output in zip(examples(), outputs, strict=True):
        assert is_as_documented(output, example.output), f"$ {example.command}\n{output}\nnot\n{example.output}"


def test_every_command_has_its_help_and_an_example_on_the_page() -> None:
    shown = re.findall(r"^<!-- help (.*) -->$", PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(" ".join(words) for words in commands())
    used = [example.command for example in examples()]
    for words, context in commands().items():
        if not isinstance(context.command, click.Group):
            assert any(re.search(rf"\b{' '.join(words)}( |$)", command) for command in used), words


def test_every_block_is_run_or_known() -> None:
    languages = re.findall(r"^```(\w*)\n.*?^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert set(languages) == {"console", "sh", "text"}  # text: help; sh: what switches on completion
    completions = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert all(f"_COGMENT_COMPLETE={shell}_source cogment" in "".join(completions) for shell in ("bash", "zsh", "fish"))
    assert len(completions) == 3
