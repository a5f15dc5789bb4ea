"""The client in separate processes: interrupted, with many threads, with little memory."""

import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.errors import ClosedError
from cogment_model_registry.settings import MIB
from tests.processes import server_process, started
from tests.waiting import PATIENCE_SECONDS, wait_until

INTERRUPTED = {
    "watch": "for version in registry.watch('policy'): print('begun', flush=True)",
    "track": """
with registry.track('policy') as latest:
    latest.wait_for(timeout=50)
    print('begun', flush=True)
    latest.wait_for(newer_than=10**6)
""",
    "publish": """
registry.publish('policy', bytes(2**30), progress=lambda progress: print('begun', flush=True))
""",
    "retrieve": """
while True:
    registry.retrieve('policy', progress=lambda progress: print('begun', flush=True))
""",
    "retrieve in parts": """
from cogment_model_registry.client import downloads, fetching
fetching._LARGE_BYTES = fetching._FIRST_BYTES = downloads._PART_BYTES = 2**20
fetching._FAST_BYTES_PER_SECOND = 2**60
registry.set_alias('policy', 'kept', 1)
while True:
    registry.retrieve('policy', progress=lambda progress: progress.done_bytes > 2**21 and print('begun', flush=True))
""",
}


@pytest.mark.parametrize("call", INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interruption_ends_any_call_in_progress(shared_endpoint: str, call: str) -> None:
    head = "import sys\nfrom cogment_model_registry import ModelRegistry\n"
    script = f"{head}registry = ModelRegistry(sys.argv[1])\nwith registry:\n" + "\n".join(
        f"    {line}" for line in call.splitlines()
    )
    with ModelRegistry(shared_endpoint) as registry:
        registry.publish("policy", os.urandom(8 * MIB))
        process = started(script, shared_endpoint)
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == -signal.SIGINT, stderr
        assert stderr.rstrip().endswith("KeyboardInterrupt")
        # The server keeps nothing of the call.
        counts = ("uploads", "retrievals", "watchers")
        wait_until(lambda: {registry.status()[name] for name in counts} == {"0"}, registry.status)
        assert [version.number for version in registry.list_versions("policy")] == [1]


GOING_ON = """
import sys
from cogment_model_registry import ModelRegistry

with ModelRegistry(sys.argv[1]) as registry:
    try:
        registry.publish("policy", b"1")
        print("begun", flush=True)
        while True:
            registry.publish("policy", bytes(100_000))
            registry.retrieve("policy")
            registry.get_version("policy")
    except KeyboardInterrupt:
        print(registry.retrieve("policy", 1), flush=True)
"""


def test_a_client_works_after_an_interruption_at_any_moment(tmp_path: Path) -> None:
    """Even between two steps of gRPC that must not be separated, after which a channel would never close."""
    with server_process(tmp_path / "archive", "--cache_max_items=1000000") as server:
        for moment in range(12):
            process = started(GOING_ON, f"grpc://127.0.0.1:{server.port}")
            assert process.stdout
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.007 * moment)  # the random moment of the signal; it waits for no condition
            process.send_signal(signal.SIGINT)
            output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
            assert (process.returncode, output) == (0, "b'1'\n"), stderr


MEMORY = """
import resource, sys
from cogment_model_registry import ModelRegistry

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with ModelRegistry(sys.argv[1]) as registry:
    registry.publish("warm", bytes(2**20))
    registry.retrieve("warm")
    before = peak()
    if sys.argv[2] == "retrieve":
        data = registry.retrieve("policy")
    elif sys.argv[2] == "download":
        registry.download("policy", sys.argv[3])
    else:
        registry.store("other", sys.argv[3])
    print(peak() - before)
"""


@pytest.mark.parametrize(("call", "copies"), [("retrieve", 1), ("download", 0), ("store", 0)])
def test_a_version_is_in_memory_once_at_most(shared_endpoint: str, call: str, copies: int, tmp_path: Path) -> None:
    size_bytes = 192 * MIB
    path = tmp_path / "file"
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
    with ModelRegistry(shared_endpoint) as registry:
        registry.store("policy", path)
    process = started(MEMORY, shared_endpoint, call, str(path))
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert int(output) < copies * size_bytes + 64 * MIB


FULL_DISK = """
import resource, signal, sys
from cogment_model_registry import ModelRegistry

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
with ModelRegistry(sys.argv[1], cache_dir=sys.argv[4] or None) as registry:
    try:
        registry.download("policy", sys.argv[2])
    except OSError as error:
        print(error.strerror)
    print(len(registry.retrieve("policy")))
"""


@pytest.mark.parametrize("missing_bytes", [1, 3 * MIB])
@pytest.mark.parametrize("has_cache", [False, True], ids=["no cache", "cache"])
def test_a_download_to_a_full_disk_leaves_nothing(
    shared_endpoint: str, missing_bytes: int, has_cache: bool, tmp_path: Path
) -> None:
    data = os.urandom(5 * MIB)
    target = tmp_path / "target"
    target.mkdir()
    cache = str(tmp_path / "cache") if has_cache else ""
    with ModelRegistry(shared_endpoint) as registry:
        registry.publish("policy", data)
    process = started(FULL_DISK, shared_endpoint, str(target / "file"), str(len(data) - missing_bytes), cache)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert output == f"File too large\n{len(data)}\n"
    assert os.listdir(target) == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_threads_share_a_client(shared_endpoint: str) -> None:
    with (
        ModelRegistry(shared_endpoint) as registry,
        ThreadPoolExecutor(16) as threads,
    ):
        numbers = list(threads.map(lambda index: registry.publish("policy", str(index).encode()).number, range(64)))
        assert sorted(numbers) == list(range(1, 65))
        contents = threads.map(lambda number: int(registry.retrieve("policy", number)), numbers)
        assert list(contents) == list(range(64))


def test_closing_ends_the_calls_of_other_threads(shared_endpoint: str) -> None:
    registry = ModelRegistry(shared_endpoint)
    registry.publish("policy", b"1")
    raised: list[BaseException] = []
    begun = threading.Event()

    def watch() -> None:
        try:
            for _version in registry.watch("policy"):
                begun.set()
        except BaseException as error:
            raised.append(error)

    watching = threading.Thread(target=watch)
    watching.start()
    begun.wait(PATIENCE_SECONDS)
    registry.close()
    watching.join(PATIENCE_SECONDS)
    assert not watching.is_alive()
    assert [type(error) for error in raised] == [ClosedError]
    with pytest.raises(ClosedError, match="the model registry client is closed"):
        registry.list_models()
    registry.close()


SIGNALS = """
import os, signal, sys, threading
from cogment_model_registry import ModelRegistry

def soon(number):
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()

def store(number, frame):
    registry.store("policy", b"final")
    raise KeyboardInterrupt

def receive_and_be_interrupted(versions, number=signal.SIGINT):
    try:
        print(next(versions).number)
        soon(number)
        next(versions)
    except KeyboardInterrupt:
        print("interrupted")

with ModelRegistry(sys.argv[1]) as registry:
    registry.publish("policy", b"1")
    untouched = registry.watch("policy")
    next(untouched)
    receive_and_be_interrupted(registry.watch("policy"))
    registry.publish("policy", b"2")
    print(next(untouched).number)

    begun_elsewhere = registry.watch("policy", after=1)
    thread = threading.Thread(target=next, args=(begun_elsewhere,))
    thread.start()
    thread.join()
    soon(signal.SIGINT)
    try:
        next(begun_elsewhere)
    except KeyboardInterrupt:
        print("interrupted")

    # The watch must be over, or it would yield the version that the handler stores.
    signal.signal(signal.SIGUSR1, store)
    receive_and_be_interrupted(registry.watch("policy", after=1), signal.SIGUSR1)
    print(registry.retrieve("policy"))
"""


def test_an_interruption_ends_only_one_call_and_its_handler_may_make_another(shared_endpoint: str) -> None:
    process = started(SIGNALS, shared_endpoint)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert output.split() == ["1", "interrupted", "2", "interrupted", "2", "interrupted", "b'final'"]


PIPED = """
import os, sys
from cogment_model_registry import ModelRegistry

reading, writing = os.pipe()
os.write(writing, b"weights")
with ModelRegistry(sys.argv[1]) as registry, open(reading, "rb", buffering=int(sys.argv[2])) as pipe:
    print("begun", flush=True)
    registry.publish("policy", pipe)
"""


@pytest.mark.parametrize("buffering", ["0", "-1"], ids=["raw", "buffered"])
def test_an_interruption_ends_the_wait_for_a_pipe(shared_endpoint: str, buffering: str) -> None:
    """It would never end otherwise: the process itself has the other end of the pipe."""
    for moment in range(3):
        process = started(PIPED, shared_endpoint, buffering)
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.1 * moment)  # the random moment of the signal; it waits for no condition
        process.send_signal(signal.SIGINT)
        _output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == -signal.SIGINT, stderr
        assert stderr.rstrip().endswith("KeyboardInterrupt")


OTHERS_CACHE = """
import os, sys
from cogment_model_registry import ModelRegistry

os.chmod(sys.argv[2], 0o755)
os.setgid(65534)
os.setuid(65534)
with ModelRegistry(sys.argv[1], cache_dir=sys.argv[2]) as registry:
    print(registry.retrieve("policy"))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
def test_damaged_bytes_in_the_cache_of_another_user_are_fetched_again(shared_endpoint: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with ModelRegistry(shared_endpoint, cache_dir=directory) as registry:
            registry.retrieve(registry.publish("policy", b"weights"))
        [cached] = Path(directory).glob("??/*")
        cached.write_bytes(b"damaged")
        process = started(OTHERS_CACHE, shared_endpoint, directory)
        output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, output) == (0, "b'weights'\n"), stderr
        assert "damaged bytes of version 1 of 'policy' found in the cache" in stderr


AT_ANY_MOMENT = """
import random, signal, sys, time
from cogment_model_registry import ModelRegistry

def interrupt(*_):
    raise KeyboardInterrupt

def call(*_):
    registry.get_model("policy")
    handled.append(1)

interrupted, handled = 0, []
registry = ModelRegistry(sys.argv[1])
registry.create_model("policy")
for handler in (interrupt, call):
    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 2
    while time.monotonic() < end or (interrupted if handler is interrupt else len(handled)) <= 10:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
            registry.get_model("policy")
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
signal.signal(signal.SIGALRM, signal.SIG_IGN)
registry.close()
print(interrupted > 10, len(handled) > 10)
"""


def test_signals_may_arrive_at_any_moment(shared_endpoint: str) -> None:
    """Thousands of interruptions, or of handlers that make a call, in the middle of a call."""
    process = started(AT_ANY_MOMENT, shared_endpoint)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (0, "True True\n"), stderr


LEFT_OPEN = """
import signal, sys
from cogment_model_registry import ModelRegistry

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
registry = ModelRegistry(sys.argv[1])
try:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    while True:
        registry.list_models()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("seconds", ["0.00005", "0.0002", "0.001", "0.01"])
def test_a_process_ends_although_its_client_is_open_after_an_interruption(shared_endpoint: str, seconds: str) -> None:
    process = started(LEFT_OPEN, shared_endpoint, seconds)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (0, "interrupted\n"), stderr
