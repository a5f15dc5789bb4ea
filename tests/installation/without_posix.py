"""A session of the client without modules that Windows and Python 3.10 lack; takes an endpoint and a directory.

The standard library and gRPC are imported first, since they choose their modules by the name of the system.
"""

import asyncio
import contextlib
import datetime
import enum
import io
import os
import select
import signal
import socket
import sys
import tempfile
import types
import typing

import click.shell_completion  # noqa: F401
import google.protobuf.text_format  # noqa: F401
import grpc.aio  # noqa: F401
import numpy as np
import tqdm.auto  # noqa: F401

MODULES = ("fcntl", "grp", "posix", "pwd", "resource", "termios", "uvloop")
SERVER_MODULES = ("cachetools", "grpc_health", "grpc_reflection", "prometheus_client", "psutil", "structlog", "yaml")
OF_OS = (
    *(
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "fchmod",
        "getuid",
        "geteuid",
        "memfd_create",
        "mkfifo",
        "openpty",
    ),
    *("posix_fadvise", "pread", "preadv", "pwrite", "sched_getaffinity", "set_blocking", "sysconf", "uname"),
)
OF_SELECT = ("epoll", "poll")
OF_SOCKET = ("MSG_CMSG_CLOEXEC", "SO_PEERCRED", "recv_fds", "send_fds")
OF_SIGNAL = ("SIGHUP", "SIGPIPE", "SIGKILL", "SIGUSR1", "pthread_kill")

SINCE_PYTHON_3_11 = {
    asyncio: ("Runner", "TaskGroup", "timeout"),
    datetime: ("UTC",),
    enum: ("StrEnum",),
}
OF_TYPING = ("LiteralString", "Never", "Self", "Unpack", "assert_never")

locked: list[int] = []


def remove_posix() -> None:
    """Remove the modules and names that Windows and Python 3.10 lack, and add Windows' locks."""
    for name in (*MODULES, *SERVER_MODULES):
        sys.modules[name] = None  # type: ignore[assignment] # so an import fails
    posix = {os: OF_OS, select: OF_SELECT, signal: OF_SIGNAL, socket: OF_SOCKET}
    for module, names in (posix | SINCE_PYTHON_3_11).items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    old_typing = types.ModuleType("typing")  # a copy of the module, since `typing` itself needs the missing names
    old_typing.__dict__.update((name, value) for name, value in vars(typing).items() if name not in OF_TYPING)
    sys.modules["typing"] = old_typing
    os.supports_fd.discard(os.chmod)
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.__dict__.update(LK_NBLCK=2, locking=lambda file, _mode, _size: locked.append(file))
    sys.modules["msvcrt"] = msvcrt


def use_client(endpoint: str, directory: str) -> None:
    """Publish a file by its path and an open one, retrieve with a cache, download, and track."""
    from cogment_model_registry import ModelRegistry, Saved, numpy  # noqa: PLC0415

    path = os.path.join(directory, "weights")
    with ModelRegistry(endpoint, cache_dir=os.path.join(directory, "cache")) as registry:
        with open(path, "wb") as file:
            file.write(b"0123456789" * 300_000)
        registry.publish("m", path)
        with open(path, "rb") as file:
            file.seek(10)
            registry.publish("m", file)
            assert file.tell() == os.path.getsize(path)
        with tempfile.TemporaryFile() as file:
            file.write(b"weights")
            file.seek(2)
            registry.store("m", file)
        read, write = os.pipe()
        with open(read, "rb") as pipe:
            os.write(write, b"piped")
            os.close(write)
            registry.publish("m", pipe)
        assert [len(registry.retrieve("m", number)) for number in (1, 2, 3, 4)] == [3_000_000, 2_999_990, 5, 5]
        assert locked, "the cache was not locked"
        assert registry.download("m", path, version=3).archived
        with open(path, "rb") as file:
            assert file.read() == b"ights"
        assert registry.download("m", path, version=1, resume=True).number == 1
        assert sorted(name for name in os.listdir(directory) if name.startswith("weights")) == ["weights"]
        with contextlib.closing(registry.mirror(os.path.join(directory, "mirror"), "m")) as saved:
            first = next(saved)
            assert isinstance(first, Saved)
            assert os.path.getsize(first.path) == 3_000_000
        with registry.track("m") as latest:
            assert latest.wait_for(timeout=30).number == 4
        numpy.publish(registry, "arrays", {"w": np.arange(3)})
        assert numpy.load(registry, "arrays").value["w"].tolist() == [0, 1, 2]


async def use_asyncio(endpoint: str) -> None:
    """Watch and retrieve with the client for asyncio."""
    from cogment_model_registry import aio  # noqa: PLC0415

    async with aio.ModelRegistry(endpoint) as registry:
        async for version in registry.watch("m", after=3):
            assert await registry.retrieve(version) == b"piped"
            break


def use_command_line(endpoint: str, directory: str) -> None:
    """Run commands in this process, including those that run only on other systems."""
    from cogment_model_registry import cli  # noqa: PLC0415

    out = os.path.join(directory, "out")
    for words in (["list_versions", "m"], ["retrieve", "m", "3", f"--output={out}"], ["publish", "m", out]):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert cli.main(["client", "model_registry", *words, f"--endpoint={endpoint}"]) == 0
    assert cli.main(["--version"]) == 0
    refused = (["services", "model_registry"], ["archive", "verify", directory])
    for command in refused:
        assert cli.main([command[0], "--help"]) == 0
    os.name = "nt"  # last, because `pathlib` then creates paths that do not exist here
    for command in refused:
        assert cli.main(command) == 2


if __name__ == "__main__":
    remove_posix()
    use_client(*sys.argv[1:])
    asyncio.run(use_asyncio(sys.argv[1]))
    use_command_line(*sys.argv[1:])
