"""Write `wire/_generated/` from `wire/protos/`; with `--check`, only report whether it is up to date.

protoc lays its output out like the .proto files and imports it by absolute names (`from cogment.api import ...`), which
would claim the name of the stock SDK's package. The imports are rewritten to the location of the modules here.

protoc also writes a check that refuses a protobuf older than itself. Without the check its output is that of protoc 25
except for two names that no released runtime needs, and it runs on protobuf 4.25 to 7: the check is removed, and
`make test-minimum` and `tools/try_wheel.py` run the client on each of these versions instead.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

PACKAGE = "cogment_model_registry.wire._generated"
WIRE = pathlib.Path(__file__).parent.parent / "src/cogment_model_registry/wire"
RUNTIME_CHECK = re.compile(
    r"^from google\.protobuf import runtime_version as _runtime_version\n"
    r"|^_runtime_version\.ValidateProtobufRuntimeVersion\(\n(?: .*\n)+\)\n",
    re.MULTILINE,
)
HEADER = '"""Generated from `wire/protos/` by `tools/generate_protos.py`: never edited."""\n'


def generate(target: pathlib.Path) -> None:
    """Write the modules and their stubs below `target`."""
    protos = WIRE / "protos"
    names = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    outputs = [f"--proto_path={protos}", f"--python_out={target}", f"--pyi_out={target}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *outputs, *names], check=True)
    for path in [*target.rglob("*.py"), *target.rglob("*.pyi")]:
        text = path.read_text()
        text = re.sub(r"^from (cogment[\w.]*) import", rf"from {PACKAGE}.\1 import", text, flags=re.MULTILINE)
        path.write_text(RUNTIME_CHECK.sub("", text))
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(HEADER)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Return the text of every module below `folder` by its relative name."""
    paths = [*folder.rglob("*.py"), *folder.rglob("*.pyi")]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def main() -> int:
    """Generate or check the modules."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the modules are out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = pathlib.Path(folder)
        generate(fresh)
        generated = WIRE / "_generated"
        if contents(fresh) == contents(generated):
            return 0
        if check:
            print("wire/_generated is out of date: run `make protos`", file=sys.stderr)
            return 1
        for name, text in contents(fresh).items():
            path = generated / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
