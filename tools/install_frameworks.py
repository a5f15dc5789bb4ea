"""Install the packages of `requirements/frameworks.txt`, for `make test-frameworks`, into this Python.

PyTorch has builds for the CPU, of some hundred megabytes, and with CUDA, of several gigabytes. The index determines
which one the pinned version is, so pip resolves it first, which downloads only metadata. A build with CUDA is left out,
and the tests that need it are skipped, unless `--torch=any` accepts it.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement

PINS = pathlib.Path(__file__).parent.parent / "requirements/frameworks.txt"

PIP_WITH_METADATA = "pip>=23.3"
"""The first version of pip that resolves without downloading packages."""

NEED_TORCH = ("torch==", "tensordict==", "torchao==", "stable-baselines3==")
"""The beginnings of the pins of PyTorch and of packages that require it."""

LARGE = ("cuda-", "nvidia-", "triton")
"""The beginnings of the names of packages that a build with CUDA requires."""


def pip(*arguments: str) -> str:
    """Run pip, and return its output."""
    # Compiling modules that are never imported takes half of the time.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def pip_freeze() -> list[str]:
    """Return what is installed."""
    command = [sys.executable, "-m", "pip", "freeze"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def requires_cuda(pin: str) -> bool:
    """Return whether the build for a pin on this machine requires CUDA."""
    report = json.loads(pip("--dry-run", "--no-deps", "--ignore-installed", "--report=-", pin))
    required = map(Requirement, report["install"][0]["metadata"].get("requires_dist", []))
    return any(
        requirement.name.startswith(LARGE) and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
        for requirement in required
    )


def main() -> None:
    """Install them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", choices=("cpu", "any"), default="cpu", help="accepted builds of PyTorch")
    parser.add_argument("--pins", type=pathlib.Path, default=PINS, help="the file with the pins")
    arguments = parser.parse_args()
    which = arguments.torch
    pins = [line for line in arguments.pins.read_text().splitlines() if line and not line.startswith("#")]
    pip(PIP_WITH_METADATA)
    if arguments.pins != PINS:
        # What is installed stays; and what requires PyTorch is left out where it was.
        installed = {line for line in pip_freeze() if line.startswith("torch==")}
        if not installed:
            pins = [pin for pin in pins if not pin.startswith(NEED_TORCH)]
        pip("--constraint=" + str(PINS), *pins)
        return
    for pin in [pin for pin in pins if pin.startswith("torch==") and which == "cpu" and requires_cuda(pin)]:
        print(
            f"{pin} is available only with CUDA, which takes gigabytes: skipped with its tests; TORCH=any installs it"
        )
        pins = [other for other in pins if not other.startswith(NEED_TORCH)]
    pip(*pins)


if __name__ == "__main__":
    main()
