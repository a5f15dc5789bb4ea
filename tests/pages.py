"""Read the snippets and the sessions of a page, and run its sessions.

A block marked `console` is part of a session: each line with a prompt is a command, and the lines after it are what the
command prints. Text that differs from run to run, such as a time, is compared as one word; a line ``[...]`` stands for
any lines.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.processes import clean_environment

ROOT = Path(__file__).parent.parent

_NEVER_THE_SAME = (
    (r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
    (r"\bcmr_[\w-]+", "TOKEN"),
    (r"\bipv4:127\.0\.0\.1:\d{5}\b", "PEER"),
    (r"\bprocess [0-9]+", "process N"),
    (r"Secret \[[^]]+\]", "Secret [...]"),
    (r"Service ID \[[0-9]+\]", "Service ID [N]"),
    (r"\b1[0-9]{18}\b", "NANOSECONDS"),  # after the ids, which may look the same
    (r"in [0-9.]+ s \([^)]*/s\)", "in a moment"),
    (r"(\(cogment-model-registry\) |cogment-model-registry +|\[__version\] = \[)[0-9.a-z]+", r"\1VERSION"),
    (r" +$", ""),
)


@dataclass(frozen=True)
class Example:
    """A command of a page, and the output that the page shows for it."""

    command: str
    output: str


def text_of(page: str) -> str:
    """Return the text of a page, by its path below the root of the repository."""
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def languages(page: str) -> set[str]:
    """Return the languages of the blocks of a page; the empty text for blocks without one."""
    return set(re.findall(r"^```(\w*)\n.*?^```$", text_of(page), re.MULTILINE | re.DOTALL))


def examples(page: str) -> list[Example]:
    """Return the examples of a page, in order."""
    parts = [part for block in blocks(page, "console") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [Example(*part.split("\n", 1)) for part in parts]


def run_session(
    commands: list[str],
    directory: Path,
    ports: Mapping[str, str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Run the commands in one shell, and return the output of each.

    Args:
        commands: The commands of the page.
        directory: An empty directory for files of the session.
        ports: The port to use in place of each port of the page; in the output they are replaced back.
        seconds: The time limit of the session.
        environment: More environment variables.
    """
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
            env={**clean_environment(), "PATH": path, "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so everything that a failure leaves running can be killed
        )
        try:
            process.wait(seconds)
        finally:
            left = end_session(process)
    text = output_path.read_text()
    assert not left, f"the page leaves processes behind, after:\n{text}"
    for documented, free in ports.items():
        text = re.sub(rf"\b{free}\b", documented, text)
    return text.split(f"{mark}\n")[:-1]


def run_script(text: str, directory: Path, seconds: float) -> str:
    """Run a script of bash in a new directory, and return what it prints; fail if it fails or leaves processes."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    output_path = directory.with_suffix(".output")
    directory.mkdir()
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=directory,
            env={**clean_environment(), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a failure leaves running can be ended as a whole
        )
        try:
            code = process.wait(seconds)
        finally:
            left = end_session(process)
    printed = output_path.read_text()
    logs = "".join(log.read_text() for log in directory.glob("*.log"))
    assert code == 0, f"exit code {code} after:\n{printed}\n{logs}"
    assert not left, f"the page leaves processes behind, after:\n{printed}"
    return printed


def end_session(process: "subprocess.Popen[bytes]") -> bool:
    """Kill a process and every process that it started, and return whether one was still running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    process.wait()
    return True


def assert_as_documented(
    page: str,
    directory: Path,
    ports: Mapping[str, str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run the session of a page as `run_session` does, and compare each output with the page."""
    documented = examples(page)
    outputs = run_session([example.command for example in documented], directory, ports, seconds, environment)
    assert len(outputs) == len(documented), outputs[-1:]
    for example, output in zip(documented, outputs, strict=True):
        assert is_as_documented(output, example.output), f"$ {example.command}\n{output}\nnot\n{example.output}"


def is_as_documented(output: str, documented: str) -> bool:
    """Return whether a command printed what the page shows."""
    pattern = r"(?:.*\n)*?".join(re.escape(part) for part in _stable(documented).split("[...]\n"))
    return re.fullmatch(pattern, _stable(output)) is not None


def _stable(text: str) -> str:
    """Return a text with everything that differs from run to run replaced by fixed words."""
    for pattern, word in _NEVER_THE_SAME:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text
