"""A stand-in for `kubectl` in a cluster of one pod, for the commands of docs/security.md.

`python -m tests.docs.kubectl DIRECTORY ...` keeps what it is told in a directory: Secrets and ConfigMaps. `apply`
starts the server of the manifest as `tests.pods` does. Whatever it does not know is an error.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.pods import ONE, Pod
from tests.waiting import wait_until

LOG_NAME = "pod.log"
POD_NAME = f"{ONE.the('StatefulSet')['metadata']['name']}-0"


def _read(place: Path, kind: str) -> dict[str, dict[str, bytes]]:
    folders = (place / kind).glob("*")
    return {folder.name: {file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders}


def _pod(place: Path) -> Pod:
    (place / "volumes").mkdir(exist_ok=True)
    return Pod(place / "volumes", config_maps=_read(place, "configmap"), secrets=_read(place, "secret"))


def create(place: Path, kind: str, name: str, files: Sequence[tuple[str, bytes]]) -> None:
    """Keep a Secret or a ConfigMap."""
    folder = place / kind / name
    folder.mkdir(parents=True)
    for key, content in files:
        (folder / key).write_bytes(content)


def create_command(place: Path, words: Sequence[str]) -> None:
    """Do `kubectl create`."""
    parser = argparse.ArgumentParser(prog="kubectl create")
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("namespace").add_argument("name")
    config_map = kinds.add_parser("configmap")
    config_map.add_argument("name")
    config_map.add_argument("--from-file", action="append", default=[])
    config_map.add_argument("--from-literal", action="append", default=[])
    tls = kinds.add_parser("secret").add_subparsers(required=True).add_parser("tls")
    tls.add_argument("name")
    tls.add_argument("--cert", required=True)
    tls.add_argument("--key", required=True)
    given = parser.parse_args(words)
    if given.kind == "secret":
        files = [("tls.crt", Path(given.cert).read_bytes()), ("tls.key", Path(given.key).read_bytes())]
        create(place, "secret", given.name, files)
    elif given.kind == "configmap":
        literals = [(key, value.encode()) for key, _, value in (each.partition("=") for each in given.from_literal)]
        create(
            place,
            "configmap",
            given.name,
            [*((Path(each).name, Path(each).read_bytes()) for each in given.from_file), *literals],
        )


def apply(place: Path, path: str) -> None:
    """Start the server of the manifest, on free ports of this machine."""
    if Path(path).read_bytes() != ONE.path.read_bytes():
        raise SystemExit(f"{path} is not the manifest")
    pod = _pod(place)
    pod.write_volumes()
    command = [*pod.before(), sys.executable, "-m", "cogment_model_registry", "services", "model_registry"]
    command += [*ONE.container["args"], "--port=0", "--metrics_port=0", "--http_port=0", "--host=127.0.0.1"]
    with (place / LOG_NAME).open("wb") as log:
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def main(directory: str, *words: str) -> int:
    """Do a command; the exit code."""
    place = Path(directory)
    match words:
        case ["create", *rest]:
            create_command(place, rest)
        case ["config", "set-context", "--current", "--namespace=models"]:
            pass
        case ["get", "--raw", path]:
            sys.stdout.write(json.loads((place / "raw.json").read_text())[path])
        case ["apply", "-f", path]:
            apply(place, path)
        case ["rollout", "status", name] if name == f"statefulset/{ONE.the('StatefulSet')['metadata']['name']}":
            wait_until(lambda: '"event": "serving"' in (place / LOG_NAME).read_text())
        case ["exec", name, "--", "cogment", *rest] if name == POD_NAME:
            command = [*_pod(place).before(), sys.executable, "-m", "cogment_model_registry", *rest]
            return subprocess.run(command, check=False).returncode
        case _:
            raise SystemExit(f"the stand-in for kubectl does not know: {' '.join(words)}")
    return 0


def install(program: Path) -> None:
    """Write the program `kubectl`, which keeps what it is told in the directory above it."""
    root = Path(__file__).parents[2]
    line = f'PYTHONPATH="{root}" exec "{sys.executable}" -m tests.docs.kubectl "{program.parent}" "$@"'
    program.write_text(f"#!{shutil.which('sh')}\n{line}\n")
    program.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
