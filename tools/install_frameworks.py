"""Install what `make test-frameworks` tests besides NumPy, as `requirements/frameworks.txt` has it, into this Python.

PyTorch comes in builds for the CPU alone, of some hundred megabytes, and with CUDA, of several gigabytes. Which one an
index has under the pinned version is its business, so pip is asked first, which takes the metadata alone. A build with
CUDA is left out, and the tests that need it skip, unless `--torch=any` says that it will do.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from packaging.requirements import Requirement

PINS = pathlib.Path(__file__).parent.parent / "requirements/frameworks.txt"

PIP_WITH_METADATA = "pip>=23.3"
"""The first one that resolves without fetching the packages."""

NEED_TORCH = ("torch==", "tensordict==", "torchao==")
"""How the pins begin of PyTorch and of what would bring it along."""

LARGE = ("cuda-", "nvidia-", "triton")
"""How the names of what a build with CUDA requires begin."""


def pip(*arguments: str) -> str:
    """Run pip, and return what it prints."""
    # Compiling all that is never imported takes half of the time.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def requires_cuda(pin: str) -> bool:
    """Return whether the build that would be installed for a pin requires CUDA on this machine."""
    report = json.loads(pip("--dry-run", "--no-deps", "--ignore-installed", "--report=-", pin))
    required = map(Requirement, report["install"][0]["metadata"].get("requires_dist", []))
    return any(
        requirement.name.startswith(LARGE) and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
        for requirement in required
    )


def main() -> None:
    """Install them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", choices=("cpu", "any"), default="cpu", help="which builds of PyTorch will do")
    which = parser.parse_args().torch
    pins = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    pip(PIP_WITH_METADATA)
    for pin in [pin for pin in pins if pin.startswith("torch==") and which == "cpu" and requires_cuda(pin)]:
        print(
            f"{pin} is at hand with CUDA only, which takes gigabytes: left out, its tests skip; TORCH=any installs it"
        )
        pins = [other for other in pins if not other.startswith(NEED_TORCH)]
    pip(*pins)


if __name__ == "__main__":
    main()
