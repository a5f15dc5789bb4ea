"""Pin the dependencies, with hashes, for every supported Python and platform: `requirements/*.txt`.

serve.txt is for running and building the package, develop.txt adds the packages for tests and checks, test.txt those
for the tests that run in other environments too, and bench.txt those for benchmarks. minimum.txt has the lowest version
of each range in pyproject.toml, on the oldest Python that runs the server. The pins name no index: the machine chooses
it.
"""

import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
OLDEST_PYTHON = "3.11"
TEST_TOOLS = ("pytest-randomly", "pytest-timeout", "pytest-xdist", "safetensors")
"""What tests take besides, in whichever environment they run."""
EXAMPLES = ("gymnasium", "matplotlib")
"""What the examples take, one of which is tested where PyTorch is."""


def compile_pins(names: list[str], target: pathlib.Path, *options: str) -> None:
    """Write the pins of `names` and of their dependencies to `target`."""
    common = [f"--python-version={OLDEST_PYTHON}", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", *common, *options, f"--output-file={target}", "-"]
    subprocess.run(command, input="\n".join(names), text=True, check=True)


def pinned(names: tuple[str, ...], pins: pathlib.Path) -> list[str]:
    """Return names with their versions in a file of pins."""
    found = dict(re.findall(r"^([\w-]+)==(\S+)", pins.read_text(), re.MULTILINE))
    return [f"{name}=={found[name]}" for name in names]


def main() -> None:
    """Write the files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    names = ("server", "oidc", "signatures", "bucket", "postgresql", "web")
    needs = [*project["project"]["dependencies"], *[need for name in names for need in extras[name]]]
    # hatchling requires editables for an editable install.
    runtime = [*needs, *project["build-system"]["requires"], "editables"]
    requirements = ROOT / "requirements"
    serve, develop = requirements / "serve.txt", requirements / "develop.txt"
    compile_pins(runtime, serve, "--universal")
    compile_pins(runtime + project["dependency-groups"]["dev"], develop, "--universal", f"--constraint={serve}")
    suites = [each for each in extras["testing"] if not each.startswith(project["project"]["name"])]
    test = [*runtime, *extras["numpy"], *suites, *TEST_TOOLS, *EXAMPLES]
    compile_pins(test, requirements / "test.txt", "--universal", f"--constraint={develop}")
    bench = runtime + project["dependency-groups"]["bench"]
    constraints = [f"--constraint={path}" for path in (serve, develop)]
    compile_pins(bench, requirements / "bench.txt", "--universal", *constraints)
    lowest = [
        *needs,
        *extras["numpy"],
        *extras["jax"],
        *suites,
        *project["build-system"]["requires"],
        *pinned(("editables", *TEST_TOOLS), develop),
    ]
    compile_pins(lowest, requirements / "minimum.txt", "--resolution=lowest-direct")


if __name__ == "__main__":
    main()
