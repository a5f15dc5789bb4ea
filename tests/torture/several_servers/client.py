"""A process with clients that work until its input ends."""

import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.torture.several_servers.workers import FOLLOWING, WORKS, Recorder, Task, Worker
from tests.waiting import PATIENCE_SECONDS


def works_of(task: Task, recorder: Recorder, stop: threading.Event) -> Iterator[tuple[Worker, Callable[[], None]]]:
    """Yield the works of a task, with who does them."""
    for kind, count in task.threads.items():
        for index in range(count):
            name = f"{task.name} {kind} {index}"
            if kind in FOLLOWING:
                for model_id in task.models:
                    worker = Worker(f"{name} {model_id}", task, recorder, stop)
                    yield worker, functools.partial(FOLLOWING[kind], worker, model_id)
            else:
                for server in task.endpoints if kind == "read" else [""]:
                    worker = Worker(f"{name} {server}".strip(), task, recorder, stop, server=server)
                    yield worker, functools.partial(WORKS[kind], worker)


def main() -> int:
    """Do what the first argument says; return 1 if a thread failed."""
    task = Task(**json.loads(sys.argv[1]))
    stop, is_late = threading.Event(), False
    recorder = Recorder(Path(task.path))

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # whoever waits for this thread need not wait

    with ExitStack() as stack:
        threads = []
        for worker, work in works_of(task, recorder, stop):
            stack.enter_context(worker.registry)
            threads.append(threading.Thread(target=run, args=(work,), name=worker.name, daemon=True))
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            if thread.is_alive():
                is_late = True
                sys.stderr.write(f"{thread.name} did not end although everything works again\n")
    recorder.close()
    return 1 if is_late else 0


if __name__ == "__main__":
    sys.exit(main())
