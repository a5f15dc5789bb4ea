"""Try the wheel as users install it: in new environments, with each installed Python and major version of protobuf.

Each environment gets only the wheel, and runs `tools/client_session.py` with a server of the present environment. The
installed packages are printed. A package index is needed.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

ROOT = pathlib.Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PROTOBUFS = ("", "protobuf==4.25.*", "protobuf==5.*", "protobuf==6.*", "protobuf==7.*")
UV = [sys.executable, "-m", "uv"]


def find_python(version: str) -> str | None:
    """Return an interpreter of a version; None if there is none."""
    candidates = sorted((pathlib.Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *candidates):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


def build_wheel(folder: pathlib.Path) -> pathlib.Path:
    """Build the wheel into a folder, and return its path."""
    command = [*UV, "build", "--quiet", "--wheel", "--no-build-isolation", f"--python={sys.executable}"]
    subprocess.run([*command, f"--out-dir={folder}", str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@contextmanager
def running_server(folder: pathlib.Path) -> Iterator[str]:
    """Return a context manager for a running server; it returns the endpoint."""
    flags = ["--port=0", "--host=127.0.0.1", f"--archive_dir={folder / 'models'}"]
    command = [sys.executable, "-m", "cogment_model_registry", "services", "model_registry", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            first_line = server.stdout.readline()
            port = re.search(r"\bport=(\d+)", first_line)
            if port is None:
                raise RuntimeError(f"the server did not start: {first_line}")
            yield f"grpc://127.0.0.1:{port[1]}"
        finally:
            server.terminate()
            server.communicate()


def try_environment(python: str, wheel: pathlib.Path, packages: list[str], endpoint: str, model_id: str) -> str:
    """Install the wheel and packages in a new environment, run the session, and return the installed packages."""
    with tempfile.TemporaryDirectory() as folder:
        python_there = f"{folder}/bin/python"
        subprocess.run([*UV, "venv", "--quiet", "--clear", f"--python={python}", folder], check=True)
        where = f"--python={python_there}"
        subprocess.run([*UV, "pip", "install", "--quiet", where, str(wheel), *packages], check=True)
        listing = [*UV, "pip", "list", where, "--format=freeze"]
        listed = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
        session = [python_there, str(ROOT / "tools/client_session.py"), endpoint, model_id]
        subprocess.run(session, cwd=folder, check=True)
    return " ".join(line for line in listed.split() if not line.startswith("cogment-model-registry"))


def main() -> int:
    """Try all environments; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help="a version such as 3.12; by default all that are installed")
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheel = build_wheel(folder)
        with running_server(folder) as endpoint:
            for version in parser.parse_args().python or PYTHONS:
                python = find_python(version)
                if python is None:
                    print(f"Python {version}: not installed")
                    continue
                for number, protobuf in enumerate(PROTOBUFS):
                    title = f"Python {version}, {protobuf or 'nothing else'}"
                    try:
                        listed = try_environment(
                            python, wheel, [protobuf] if protobuf else [], endpoint, f"policy-{version}-{number}"
                        )
                    except subprocess.CalledProcessError as error:
                        failed += 1
                        print(f"{title}: FAILED: {error}")
                    else:
                        print(f"{title}: passed with {listed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
