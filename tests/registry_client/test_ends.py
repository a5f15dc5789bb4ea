"""The client at the exit of Python and in forked processes: each call succeeds or is refused, and nothing hangs."""

from pathlib import Path

import grpc
import pytest

from cogment_model_registry import ModelRegistry
from tests.processes import started
from tests.waiting import PATIENCE_SECONDS

IMPORTS = """
import asyncio, atexit, multiprocessing, os, pickle, signal, sys, threading
from cogment_model_registry import ModelRegistry, aio
from cogment_model_registry.errors import ClosedError, NotFoundError
"""

AFTER_THE_MAIN_THREAD = """
import _thread

def starts_threads():
    try:
        _thread.start_new_thread(int, ())
    except RuntimeError:
        return False
    return True

def made(call):
    '''Return whether a call was made; it is refused where Python starts no threads any more.'''
    starts = starts_threads()
    try:
        call()
    except ClosedError as error:
        assert not starts and "Python is ending" in error.message, error.message
    else:
        assert starts

registry = ModelRegistry(sys.argv[1])

def track():
    with registry.track("policy", decode=len) as latest:
        assert latest.wait_for(timeout=50).number == 1

calls = (
    lambda: registry.publish("policy", bytes(200_000)),
    lambda: registry.retrieve("policy"),
    lambda: registry.download("policy", sys.argv[2]),
    lambda: next(registry.watch("policy")),
    track,
    lambda: registry.store("other", bytes(100_000)),
)

def work():
    threading.main_thread().join()
    for call in calls:
        made(call)
    print("worked")

thread = threading.Thread(target=work)
thread.start()
atexit.register(registry.close)
for call in calls[1:]:
    atexit.register(made, call)
"""


def test_calls_succeed_or_are_refused_after_the_main_thread_has_ended(shared_endpoint: str, tmp_path: Path) -> None:
    process = started(IMPORTS + AFTER_THE_MAIN_THREAD, shared_endpoint, str(tmp_path / "file"))
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output, stderr) == (0, "worked\n", "")


FINALIZER = """
class AtTheEnd:
    # In a reference cycle, which only the garbage collector finds.

    def __init__(self, call, *others):
        self.call, self.others, self.itself = call, others, self

    def __del__(self, ClosedError=ClosedError, print=print):
        try:
            self.call()
        except (ClosedError, StopIteration):  # the garbage collector may have closed a watch before
            print("1")
"""

LEFT_OPEN_AT_THE_END = {
    "a watch": """
versions = registry.watch("policy")
print(next(versions).number)
""",
    "a watch in a cycle": """
versions = registry.watch("policy")
print(next(versions).number)
at_the_end = AtTheEnd(int, versions, registry)
del versions, registry
""",
    "a watch of another thread": """
received = threading.Event()

def watch():
    for _version in registry.watch("policy"):
        received.set()

threading.Thread(target=watch, daemon=True).start()
print(int(received.wait(50)))
""",
    "a tracked model": """
latest = registry.track("policy")
latest.__enter__()
print(latest.wait_for(timeout=50).number)
""",
    "a tracker whose decoding never ends": """
begun = threading.Event()
latest = registry.track("policy", decode=lambda data: (begun.set(), threading.Event().wait()))
latest.__enter__()
print(int(begun.wait(50)))
""",
    "a tracker of asyncio whose decoding never ends": """
async def main():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def decode(data):
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()

    async with aio.ModelRegistry(sys.argv[1]) as own, own.track("policy", decode=decode):
        await begun.wait()
        print("1")

asyncio.run(main())
""",
    "a pipe that is read": """
reading, writing = os.pipe()
pipe = open(reading, "rb")
threading.Thread(target=lambda: registry.publish("policy", pipe), daemon=True).start()
print(registry.get_version("policy").number)
""",
    "an event loop with tasks": """
async def main():
    own, begun = aio.ModelRegistry(sys.argv[1]), asyncio.Event()

    async def retrieve():
        while True:
            await own.retrieve("large", progress=lambda progress: begun.set())

    async def watch():
        async for _version in own.watch("policy"):
            pass

    tasks = [asyncio.ensure_future(each) for each in (retrieve(), watch(), own.publish("other", bytes(2**24)))]
    await begun.wait()
    return own, tasks

loop = asyncio.new_event_loop()
left = loop.run_until_complete(main())
print("1")
""",
    "an object that retrieves": "at_the_end = AtTheEnd(lambda: registry.retrieve('policy'))",
    "an object that stores": "at_the_end = AtTheEnd(lambda: registry.store('policy', bytes(200_000)))",
    "an object that watches": "at_the_end = AtTheEnd(lambda: next(registry.watch('policy')))",
    "an object that continues to watch": """
versions = registry.watch("policy")
next(versions)
at_the_end = AtTheEnd(lambda: next(versions))
""",
    "an object that tracks": "at_the_end = AtTheEnd(registry.track('policy').__enter__)",
    "an object that waits": """
latest = registry.track("policy")
latest.__enter__()
at_the_end = AtTheEnd(lambda: latest.wait_for(newer_than=1000))
""",
    "an object that closes": """
versions, latest = registry.watch("policy"), registry.track("policy")
next(versions)
latest.__enter__()

def close(print=print):
    latest.__exit__(None, None, None)
    registry.close()
    print("1")

at_the_end = AtTheEnd(close)
""",
}


@pytest.fixture(scope="module")
def policy_endpoint(shared_endpoint: str) -> str:
    """A server with a version of the model "policy"."""
    return shared_endpoint


@pytest.mark.parametrize("left_open", LEFT_OPEN_AT_THE_END.values(), ids=LEFT_OPEN_AT_THE_END)
def test_a_process_ends_although_its_client_is_in_use(shared_endpoint: str, left_open: str) -> None:
    with ModelRegistry(shared_endpoint) as registry:
        registry.publish("policy", b"1")
        registry.publish("large", bytes(2**24))
    process = started(f"{IMPORTS}{FINALIZER}\nregistry = ModelRegistry(sys.argv[1])\n{left_open}", shared_endpoint)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (0, "1\n"), stderr


SPAWNED = """
def leave_open(endpoint):
    global versions, latest
    registry = ModelRegistry(endpoint)
    versions, latest = registry.watch("policy"), registry.track("policy")
    next(versions)
    latest.__enter__()
    latest.wait_for(timeout=50)
    in_cycle = [registry.watch("policy")]
    next(in_cycle[0])
    in_cycle.append(in_cycle)

def retrieve(registry, model_id):
    with registry:
        return registry.retrieve(model_id)

def main(endpoint):
    spawning = multiprocessing.get_context("spawn")
    process = spawning.Process(target=leave_open, args=[endpoint])
    process.start()
    process.join()
    print(process.exitcode)
    with ModelRegistry(endpoint) as registry, spawning.Pool(1) as pool:
        print(pool.apply(retrieve, [registry, "policy"]))
        try:
            pool.apply(retrieve, [registry, "nothing"])
        except NotFoundError as error:
            print(error.model_id)
        print(registry.retrieve("policy"))
"""


def test_a_spawned_process_may_get_a_client_and_leave_it_in_use(shared_endpoint: str, tmp_path: Path) -> None:
    with ModelRegistry(shared_endpoint) as registry:
        registry.publish("policy", b"weights")
    (tmp_path / "spawned.py").write_text(IMPORTS + SPAWNED)
    script = "import sys; sys.path.insert(0, sys.argv[2]); import spawned; spawned.main(sys.argv[1])"
    process = started(script, shared_endpoint, str(tmp_path))
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output.split()) == (0, ["0", "b'weights'", "nothing", "b'weights'"]), stderr


FORKED = """
def refused(call):
    try:
        call()
    except ClosedError as error:
        assert "forked" in error.message, error.message
    else:
        raise AssertionError(call)

class Slow:
    '''A file-like object whose read blocks until `may_go_on` is set.'''

    def __init__(self):
        self.is_read, self.may_go_on, self.parts = threading.Event(), threading.Event(), [b"slow", b""]

    def read(self, size=-1):
        self.is_read.set()
        self.may_go_on.wait()
        return self.parts.pop(0)

def in_child():
    signal.alarm(40)
    for call in (
        lambda: registry.retrieve("policy"),
        lambda: registry.publish("policy", b"2"),
        lambda: registry.publish("policy", bytes(200_000)),
        lambda: registry.create_model("other"),
        lambda: next(registry.watch("policy")),
        lambda: next(begun),
        lambda: latest.wait_for(newer_than=1),
        registry.track("policy").__enter__,
        not_entered.__enter__,
        lambda: asyncio.run(of_asyncio.get_version("policy")),
    ):
        refused(call)
    assert latest.value == 200_000
    assert "forked" in str(latest.error) and "forked" in repr(latest)
    latest.__exit__(None, None, None)
    begun.close()
    registry.close()
    asyncio.run(of_asyncio.close())
    slow.may_go_on.set()
    with unused, tracked_by_unused as tracked:
        print(tracked.wait_for(timeout=30).number, unused.publish("own", slow).number, flush=True)
    with pickle.loads(pickle.dumps(registry)) as own:
        own.publish("own", bytes(200_000))
        print(len(own.retrieve("own")), next(own.watch("own")).number, flush=True)

async def use():
    async with of_asyncio:
        await of_asyncio.list_models()

unused, of_asyncio = ModelRegistry(sys.argv[1]), aio.ModelRegistry(sys.argv[1])
tracked_by_unused = unused.track("policy", decode=len)
with ModelRegistry(sys.argv[1], cache_dir=sys.argv[2]) as registry:
    registry.publish("policy", bytes(200_000))
    asyncio.run(use())
    begun = registry.watch("policy")
    print(next(begun).number, flush=True)
    not_entered = registry.track("policy")
    slow = Slow()
    uploading = threading.Thread(target=lambda: registry.publish("slow", slow))
    uploading.start()
    slow.is_read.wait()
    with registry.track("policy", decode=len) as latest:
        latest.wait_for(timeout=50)
        child = os.fork()
        if not child:
            in_child()
            os._exit(0)  # as multiprocessing does: gRPC's own streams may hang when a forked process deletes them
        assert os.waitpid(child, 0)[1] == 0
        print(latest.value, flush=True)
    slow.may_go_on.set()
    uploading.join()
    print(registry.retrieve("slow"), len(registry.retrieve("policy")), flush=True)
    begun.close()
"""

survives_forks = pytest.mark.skipif(
    tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 82),
    reason="gRPC before 1.82 crashes or hangs in a process that was forked while a call was in progress",
)


@survives_forks
def test_a_forked_process_can_use_only_clients_that_were_unused_before_the_fork(
    shared_endpoint: str, tmp_path: Path
) -> None:
    process = started(IMPORTS + FORKED, shared_endpoint, str(tmp_path))
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert output.splitlines() == ["1", "1 1", "200000 2", "200000", "b'slow' 200000"]


FORKED_WITH_ASYNCIO = """
async def main():
    async with aio.ModelRegistry(sys.argv[1]) as registry:
        await registry.list_models()
        child = os.fork()
        if not child:
            in_child()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

def in_child():
    signal.alarm(40)
    threading.Thread(target=lambda: asyncio.run(asynchronous())).start()  # in this one the event loop is the parent's
    with ModelRegistry(sys.argv[1]) as blocking:
        print(blocking.list_models(), flush=True)

async def asynchronous():
    try:
        await aio.ModelRegistry(sys.argv[1]).list_models()
    except ClosedError as error:
        print(error, flush=True)

asyncio.run(main())
"""


@survives_forks
def test_asyncio_is_refused_in_a_process_that_was_forked_while_its_parent_used_it(shared_endpoint: str) -> None:
    """Calls of `grpc.aio` would never end there."""
    process = started(IMPORTS + FORKED_WITH_ASYNCIO, shared_endpoint)
    output, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, stderr
    assert "[]" in output
    assert "was forked while its parent used a client for asyncio" in output
