"""Record a terminal session as docs/session.svg: real commands with a real server.

The picture shows the output of the commands, including colours; only the prompts are added. Times and ages differ
between recordings, so nothing checks that the picture is up to date: `make session` records it again.
"""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = pathlib.Path(__file__).parent.parent
PICTURE = ROOT / "docs/session.svg"

COLUMNS = 100
ROWS = 60
RUN_SECONDS = 60

# What a trainer and an actor would do, with files instead of networks.
SESSION = (
    "cogment client model_registry create_model walker --user_data algorithm=ppo",
    "cogment client model_registry publish walker step-1000.bin --user_data step=1000",
    "cogment client model_registry publish walker step-2000.bin --user_data step=2000",
    "cogment client model_registry store walker step-2000.bin --user_data best=yes",
    "cogment client model_registry list_versions walker",
    "cogment client model_registry show_version walker -2",
    "cogment client model_registry retrieve walker --output=best.bin",
    "cmp best.bin step-2000.bin && echo the same bytes",
    "cogment client model_registry retrieve walker 7 --output=missing.bin",
    "cogment client model_registry status --json | grep -E 'models|overall_load'",
)
FILES = {"step-1000.bin": 3_400_000, "step-2000.bin": 3_400_000}


@contextlib.contextmanager
def server(directory: pathlib.Path, environment: dict[str, str]) -> Iterator[None]:
    """Return a context manager for a registry that serves at the endpoint in the environment."""
    port = environment["COGMENT_MODEL_REGISTRY_ENDPOINT"].rpartition(":")[2]
    command = ["cogment", "services", "model_registry", f"--port={port}", "--host=127.0.0.1", "--archive_dir=models"]
    with subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            wait = ["cogment", "client", "model_registry", "status", "--quiet", f"--retry_seconds={RUN_SECONDS}"]
            subprocess.run(wait, env=environment, check=True)
            yield
        finally:
            process.terminate()


def shown_by(command: str, directory: pathlib.Path, environment: dict[str, str]) -> str:
    """Return the output of a command on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    with subprocess.Popen(
        [shutil.which("bash") or "bash", "-c", command],
        cwd=directory,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        # On Linux, reading fails after the last process has closed the other side.
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        process.wait(RUN_SECONDS)
    return shown.decode().replace("\r\n", "\n")


def main() -> int:
    """Record, and write the picture."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COGMENT_", "NO_COLOR"))}
    environment |= {"PATH": path, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    environment["COGMENT_MODEL_REGISTRY_ENDPOINT"] = f"grpc://127.0.0.1:{port}"
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        for file, size_bytes in FILES.items():
            (directory / file).write_bytes(file.encode() * (size_bytes // len(file)))
        with server(directory, environment):
            for command in SESSION:
                console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
                console.print(Text.from_ansi(shown_by(command, directory, environment).removesuffix("\n")))
    picture = console.export_svg(title="a model registry", theme=MONOKAI, unique_id="session")
    # The template loads fonts from another site; a picture in a document must not.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
