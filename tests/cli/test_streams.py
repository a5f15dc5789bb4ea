"""Closed standard streams, and terminals whose encoding lacks characters."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cogment_model_registry import ModelRegistry
from tests.locales import POSIX, utf_8
from tests.processes import START_SECONDS, clean_environment, server_process
from tests.terminal import on_terminal
from tests.waiting import wait_until

COGMENT = [sys.executable, "-m", "cogment_model_registry"]


def closing(redirections: str, *words: str) -> list[str]:
    """Return a command that runs `cogment` with some of its standard streams closed."""
    return ["bash", "-c", f'exec "$@" {redirections}', "bash", *COGMENT, *words]


@pytest.mark.parametrize(
    ("service", "redirections"),
    [
        ("model_registry", ">&-"),
        ("model_registry", "2>&-"),
        ("model_registry", "<&- >&- 2>&-"),
        ("directory", "<&- >&- 2>&-"),
    ],
)
def test_a_server_serves_and_stops_with_closed_streams(tmp_path: Path, service: str, redirections: str) -> None:
    place = "--archive_dir=archive" if service == "model_registry" else "--persistence_file=services.json"
    command = closing(redirections, "services", service, "--port=0", "--host=127.0.0.1", place)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=clean_environment(), cwd=tmp_path
    ) as process:
        server = psutil.Process(process.pid)
        try:
            ports = wait_until(lambda: [each.laddr.port for each in server.net_connections("tcp")])
            if service == "model_registry":
                with ModelRegistry(f"grpc://127.0.0.1:{ports[0]}") as registry:
                    registry.store("m", b"data")
            # A library that writes to a standard stream must not write to a file or a socket of the server.
            taken = {descriptor: Path(f"/proc/{process.pid}/fd/{descriptor}") for descriptor in range(3)}
            if taken[0].parent.is_dir():
                places = {str(link.readlink()).partition(":")[0] for link in taken.values()}
                assert places <= {"/dev/null", "pipe"}
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, b"")
    assert (b"stopped" in output) == (">&-" not in redirections.replace("2>&-", ""))


@pytest.mark.parametrize(
    ("words", "redirections"),
    [
        (("--version",), ">&-"),
        (("services", "nonsense"), "2>&-"),
        (("archive", "verify", "."), ">&- 2>&-"),
        (("archive", "import", ".", "-"), "<&-"),
        (("archive", "export", ".", "m"), ">&-"),
        (("client", "model_registry", "delete_model", "m"), "<&-"),
    ],
    ids=" ".join,
)
def test_a_command_with_closed_streams_ends_without_a_traceback(
    tmp_path: Path, words: tuple[str, ...], redirections: str
) -> None:
    result = subprocess.run(
        closing(redirections, *words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=START_SECONDS,
        check=False,
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert 0 <= result.returncode <= 4
    assert b"Traceback" not in result.stderr
    assert result.stderr.count(b"\n") <= 1


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """The endpoint of a registry with a model whose name is not ASCII."""
    with server_process(tmp_path / "archive") as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            registry.create_model("café", user_data={"note": "\N{LATIN CAPITAL LETTER U WITH CIRCUMFLEX}"})
        yield f"--endpoint=grpc://127.0.0.1:{server.port}"


def test_a_terminal_without_unicode_shows_escapes(endpoint: str) -> None:
    for words, shown in (
        (("list_models",), r"caf\xe9"),
        (("list_models", "--json"), r'"caf\u00e9"'),
        (("show_model", utf_8("café")), r"\xdb"),
        (("show_model", utf_8("cafés")), r'model "caf\xe9s" does not exist'),
    ):
        with on_terminal("client", "model_registry", *words, endpoint, environment=POSIX) as terminal:
            terminal.wait()
        assert shown in terminal.plain, terminal.text
        assert terminal.text.isascii(), "bytes of UTF-8 may be control codes of such a terminal"


def test_a_table_fits_a_terminal_without_unicode(endpoint: str) -> None:
    with ModelRegistry(endpoint.partition("=")[2]) as registry:
        registry.create_model("b", user_data={"note": "é" * 50})
    words = ("client", "model_registry", "list_models", endpoint)
    with on_terminal(*words, columns=80, environment=POSIX) as terminal:
        assert terminal.wait() == 0
    lines = terminal.plain.splitlines()
    assert max(map(len, lines)) == 80
    assert [line for line in lines if line.endswith("...")] == [line for line in lines if line.startswith("b ")]


def test_the_log_on_a_terminal_without_unicode_shows_escapes(tmp_path: Path) -> None:
    words = ("services", "model_registry", "--port=0", "--host=127.0.0.1", "--log_level=debug")
    with on_terminal(*words, f"--archive_dir={tmp_path / 'archive'}", environment=POSIX) as terminal:
        port = terminal.wait_for(r"\bport=(\d+)\b")[1]
        with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
            registry.create_model("café")
        terminal.wait_for(r"CreateOrUpdateModel OK .*model_id=caf\\xe9")
        assert terminal.text.isascii()
        terminal.process.terminate()
        assert terminal.wait() == 0
