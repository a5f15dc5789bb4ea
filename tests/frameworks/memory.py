"""The additional memory for publishing and loading parameters: `python -m tests.frameworks.memory`.

Each figure is measured in a separate process with a server in another one. It is the peak of the resident memory during
the call minus that before the call, as a multiple of the size of the parameters. Only Linux reports that peak.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cogment_model_registry import ModelRegistry
from tests.processes import clean_environment, server_process

MIB = 1024 * 1024
_TENSORS = 16
_WARM_UP = "warm-up"


def torch_module(size_bytes: int) -> Any:
    """Return a module of this size with some tensors, one of which has a third of it."""
    import torch  # noqa: PLC0415 # each process needs one framework

    elements = size_bytes // 4
    sizes = [elements // 3, *[elements * 2 // 3 // _TENSORS] * _TENSORS]
    return torch.nn.ParameterList([torch.nn.Parameter(torch.full((size,), 0.5)) for size in sizes])


def numpy_tree(size_bytes: int) -> Any:
    """Return a dict of arrays of this size."""
    import numpy as np  # noqa: PLC0415 # as above

    return {str(index): np.full(size_bytes // 8 // _TENSORS, 0.5) for index in range(_TENSORS)}


def jax_tree(size_bytes: int) -> Any:
    """Return a dict of arrays of this size."""
    import jax.numpy as jnp  # noqa: PLC0415 # as above

    tree = {str(index): jnp.full(size_bytes // 4 // _TENSORS, 0.5) for index in range(_TENSORS)}
    return {name: array.block_until_ready() for name, array in tree.items()}


MAKERS = {"torch": torch_module, "numpy": numpy_tree, "jax": jax_tree}
OPTIONS = {"torch": ["load", "load into"], "numpy": ["load", "load into"], "jax": ["load", "load like"]}


def resident_bytes(entry: str) -> int:
    """Return the resident memory of this process: the current one (VmRSS), or the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) * 1024


def measure(framework: str, what: str, size_bytes: int, endpoint: str) -> int:
    """Return the peak growth of this process during one call, in bytes."""
    make = MAKERS[framework]
    door: Any = __import__(f"cogment_model_registry.{framework}", fromlist=[framework])
    with ModelRegistry(endpoint, progress=False) as registry:
        # What a first call loads and starts does not depend on the size of the parameters.
        small = make(MIB)
        door.publish(registry, _WARM_UP, small)
        door.load(registry, _WARM_UP)
        parameters = make(size_bytes) if what != "load" else None
        options: dict[str, Any] = {} if what in {"publish", "load"} else {what.removeprefix("load "): parameters}

        def call() -> object:
            if what == "publish":
                return door.publish(registry, framework, parameters)
            loaded = door.load(registry, framework, **options)
            for leaf in loaded.value.values() if framework == "jax" else []:
                leaf.block_until_ready()
            return loaded

        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before_bytes = resident_bytes("VmRSS")
        loaded = call()
        grown_bytes = resident_bytes("VmHWM") - before_bytes
        del loaded
        left_bytes = resident_bytes("VmRSS")
        gc.collect()
        # JAX itself leaves some memory to the garbage collector.
        assert framework == "jax" or left_bytes - resident_bytes("VmRSS") < size_bytes // 10, (
            "only the garbage collector frees the memory"
        )
        return grown_bytes


def multiples(framework: str, size_bytes: int, local_socket: str = "off") -> dict[str, float]:
    """Return the growth in each call of a framework, as multiples of the size; over the network without a socket."""
    found = {}
    flags = [f"--cache_max_bytes={4 * size_bytes}", f"--local_socket={local_socket}"]
    with (
        tempfile.TemporaryDirectory() as directory,
        server_process(Path(directory) / "archive", *flags) as server,
    ):
        for what in ("publish", *OPTIONS[framework]):
            arguments = [framework, what, str(size_bytes), f"grpc://127.0.0.1:{server.port}"]
            command = [sys.executable, "-m", "tests.frameworks.memory", "--measure", *arguments]
            result = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, timeout=300, env=clean_environment()
            )
            found[what] = round(json.loads(result.stdout) / size_bytes, 2)
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024, help="the size of the parameters")
    parser.add_argument("--local_socket", default="off", help="auto to use the socket of a server on the same host")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("frameworks", nargs="*", default=list(MAKERS), help="torch, jax, numpy; all by default")
    arguments = parser.parse_args()
    if arguments.measure:
        framework, what, size_bytes, endpoint = arguments.measure
        print(measure(framework, what, int(size_bytes), endpoint))
        return
    for framework in arguments.frameworks:
        found = multiples(framework, arguments.mebibytes * MIB, arguments.local_socket)
        print(framework, json.dumps(found))


if __name__ == "__main__":
    main()
