"""Pin what the package needs, with hashes, for every supported Python and platform: `requirements/*.txt`.

serve.txt is what running and building the package takes, develop.txt what testing and checking it takes besides, and
bench.txt what measuring it takes. The pins name no index: where packages come from is the machine's business.
"""

import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent


def compile_pins(names: list[str], target: pathlib.Path, constraints: list[pathlib.Path]) -> None:
    """Write the pins of `names` and of all that they need to `target`."""
    options = ["--universal", "--python-version=3.11", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    options += [f"--constraint={path}" for path in constraints]
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, f"--output-file={target}", "-"]
    subprocess.run(command, input="\n".join(names), text=True, check=True)


def main() -> None:
    """Write the files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    # hatchling asks for editables when it makes an editable install.
    needs = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["server"]]
    runtime = [*needs, *project["build-system"]["requires"], "editables"]
    serve = ROOT / "requirements/serve.txt"
    develop = ROOT / "requirements/develop.txt"
    compile_pins(runtime, serve, [])
    compile_pins(runtime + project["dependency-groups"]["dev"], develop, [serve])
    bench = ROOT / "requirements/bench.txt"
    compile_pins(runtime + project["dependency-groups"]["bench"], bench, [serve, develop])


if __name__ == "__main__":
    main()
