"""The log never blocks the server: not with an unread pipe, a disk that hangs, or a file that was removed."""

import contextlib
import datetime
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.serving.log_writer import DailyFile, Output, ThreadHandler
from tests.processes import START_SECONDS, clean_environment, started
from tests.waiting import wait_until

REGISTRY = [
    sys.executable,
    "-m",
    "cogment_model_registry",
    "services",
    "model_registry",
    "--port=0",
    "--host=127.0.0.1",
]
GAP = re.compile(r"log lines dropped here.* lines=(\d+)")
MISSING = re.compile(r"log lines missing here.* lines=(\d+)")


class Pipe(Output):
    """A pipe of one page that the test reads on request."""

    name = "the pipe"
    has_substitute = False

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)

    def write(self, lines: bytes, day: datetime.date) -> None:
        self._write_to(self.writing, lines)

    def close(self) -> None:
        writing, self.writing = self.writing, -1
        if writing >= 0:
            os.close(writing)

    def read(self) -> str:
        """Read until it is closed."""
        with open(self.reading, "rb") as file:
            return file.read().decode()


@contextlib.contextmanager
def logger(output: Output, max_bytes: int = 2**20) -> Iterator[tuple[logging.Logger, ThreadHandler]]:
    """Return a context manager for a logger whose handler writes to an output."""
    handler = ThreadHandler(output, max_bytes=max_bytes)
    handler.setFormatter(Formatter())
    log = logging.Logger("test")  # noqa: LOG001 # not one that other tests see
    log.addHandler(handler)
    try:
        yield log, handler
    finally:
        handler.close()


class Formatter(logging.Formatter):
    """Formats a record with the fields of the log's own notes."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={vars(record)[name]}" for name in ("reason", "lines") if name in vars(record))
        return super().format(record) + fields


def lines_of(directory: Path) -> list[str]:
    """Return the lines of all files of a log, in the order of their names."""
    return [line for file in sorted(directory.glob("*.log")) for line in file.read_text().splitlines()]


# The queue.


def test_dropped_lines_are_counted_in_their_place() -> None:
    pipe = Pipe()
    with logger(pipe, max_bytes=64 * 1024) as (log, handler):
        for number in range(2000):
            log.info("line %d %s", number, "x" * 100)
        closing = threading.Thread(target=handler.close)
        handler.acquire()  # as `logging.shutdown` does while it closes a handler
        try:
            closing.start()
            lines = pipe.read().splitlines()
        finally:
            handler.release()
        closing.join()
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line")]
    [(place, dropped)] = [(place, int(match[1])) for place, line in enumerate(lines) if (match := GAP.search(line))]
    assert numbers[:100] == list(range(100)), "the first lines are missing"
    assert numbers == sorted(numbers)
    assert len(numbers) + dropped == 2000
    assert numbers[place:] == [], "the note is not in the place of the missing lines"


def test_lines_after_a_gap_are_written_again() -> None:
    pipe = Pipe()
    with logger(pipe, max_bytes=8 * 1024) as (log, handler):
        for number in range(200):
            log.info("line %d %s", number, "x" * 100)
        texts: list[str] = []
        reader = threading.Thread(target=lambda: texts.append(pipe.read()))
        reader.start()
        wait_until(lambda: handler.waiting_bytes == 0)
        log.info("the last line")
        handler.close()
        reader.join()
    lines = texts[0].splitlines()
    assert lines[-1] == "the last line"
    assert [bool(GAP.search(line)) for line in lines[-3:]] == [False, True, False]


def test_a_pipe_that_becomes_non_blocking_loses_no_line() -> None:
    pipe = Pipe()
    os.set_blocking(pipe.writing, False)
    with logger(pipe) as (log, handler):
        for number in range(500):
            log.info("line %d %s", number, "x" * 100)
        closing = threading.Thread(target=handler.close)
        closing.start()
        lines = pipe.read().splitlines()
        closing.join()
    assert [int(line.split()[1]) for line in lines] == list(range(500))


def test_a_pipe_without_a_reader_does_not_end_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = Pipe()
    os.close(pipe.reading)
    with logger(pipe) as (log, _):
        log.info("line")
    assert capfd.readouterr() == ("", "")


# The daily file.


def test_each_local_day_has_its_own_log_file(tmp_path: Path) -> None:
    noon = datetime.datetime(2026, 11, 22, 12, 0)
    with logger(DailyFile(str(tmp_path / "cogment.log"))) as (_, handler):
        for moment in (
            noon,
            noon.replace(hour=23, minute=59),
            noon + datetime.timedelta(hours=12),
            noon.replace(year=2027),
        ):
            record = logging.LogRecord("", logging.INFO, "", 0, f"{moment:%H:%M}", None, None)
            record.created = moment.timestamp()
            handler.handle(record)
    texts = {file.name: file.read_text() for file in tmp_path.iterdir() if file.stat().st_size}
    assert texts == {
        "cogment_2026-11-22.log": "12:00\n23:59\n",
        "cogment_2026-11-23.log": "00:00\n",
        "cogment_2027-11-22.log": "12:00\n",
    }


def test_a_file_that_is_moved_away_is_created_again(tmp_path: Path) -> None:
    with logger(DailyFile(str(tmp_path / "x.log"))) as (log, handler):
        log.info("before")
        wait_until(lambda: handler.waiting_bytes == 0)
        [file] = tmp_path.glob("x_*.log")
        file.rename(tmp_path / "moved")
        log.info("after")
    assert (tmp_path / "moved").read_text() == "before\n"
    assert lines_of(tmp_path) == ["after"]


def test_reopening_closes_a_file_that_was_moved_away(tmp_path: Path) -> None:
    with logger(DailyFile(str(tmp_path / "x.log"))) as (_, handler):
        [file] = tmp_path.glob("x_*.log")
        moved = str(file.rename(tmp_path / "moved"))
        assert moved in [each.path for each in psutil.Process().open_files()]
        handler.reopen()
        wait_until(lambda: moved not in [each.path for each in psutil.Process().open_files()])


def test_a_removed_log_directory_is_created_again(tmp_path: Path) -> None:
    with logger(DailyFile(str(tmp_path / "logs/x.log"))) as (log, handler):
        log.info("before")
        wait_until(lambda: handler.waiting_bytes == 0)
        (tmp_path / "logs").rename(tmp_path / "moved")
        log.info("after")
    assert lines_of(tmp_path / "moved") == ["before"]
    assert lines_of(tmp_path / "logs") == ["after"]


def test_lines_go_to_standard_error_while_the_file_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with logger(DailyFile(str(tmp_path / "logs/x.log"))) as (log, handler):

        def say(text: str) -> None:
            log.info(text)
            wait_until(lambda: handler.waiting_bytes == 0)

        say("before")
        (tmp_path / "logs").rename(tmp_path / "moved")
        (tmp_path / "logs").touch()  # in place of the directory
        for text in ("one", "two", "three"):
            say(text)
        output, shown = capfd.readouterr()
        first, *lines = shown.splitlines()
        (tmp_path / "logs").unlink()
        say("after")
    assert output == ""
    assert re.fullmatch(r"error: log file .*x\.log cannot be written: (Not a directory|File exists); until .*", first)
    assert lines == ["one", "two", "three"], "each event is one line"
    note, *rest = lines_of(tmp_path / "logs")
    assert (match := MISSING.search(note))
    assert int(match[1]) == 3
    assert rest == ["after"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_reported_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"x_{datetime.date.today()}.log").symlink_to("/dev/full")
    with logger(DailyFile(str(tmp_path / "x.log"))) as (log, _):
        for number in range(5):
            log.info("line %d", number)
    first, *lines = capfd.readouterr().err.splitlines()
    assert "No space left on device" in first
    assert lines == [f"line {number}" for number in range(5)]


_CUT = """
import datetime, resource, sys
from cogment_model_registry.serving.log_writer import DailyFile

file, day = DailyFile(sys.argv[1]), datetime.date.today()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
try:
    file.write(b"0123456789abcdef\\n", day)
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write(b"next\\n", day)
    file.write(b"last\\n", day)
"""


def test_a_truncated_line_is_ended_before_the_next_one(tmp_path: Path) -> None:
    with started(_CUT, str(tmp_path / "x.log")) as process:
        assert process.communicate(timeout=START_SECONDS) == ("", "")
    assert lines_of(tmp_path) == ["0123456789", "next", "last"]


# The server.


def make_refused_calls(port: int, count: int) -> None:
    """Make refused calls, each of which logs a line."""
    long_id = "x" * 128
    with ModelRegistry(f"grpc://127.0.0.1:{port}") as registry:
        for _ in range(count):
            with pytest.raises(errors.NotFoundError):
                registry.get_version(long_id)


def stop(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(START_SECONDS)


def test_unread_standard_output_delays_no_call_and_no_stop(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    command = [*REGISTRY, f"--archive_dir={tmp_path / 'archive'}"]
    with subprocess.Popen(command, stdout=writing, env=clean_environment()) as process:
        os.close(writing)
        try:
            text = ""
            while not (match := re.search(r"\bport=(\d+)", text)):
                text += os.read(reading, 4096).decode()
            make_refused_calls(int(match[1]), 200)  # each logs some 300 bytes
            assert stop(process) == 0
        finally:
            process.kill()
            os.close(reading)


def test_a_log_file_whose_disk_hangs_delays_no_call_and_no_stop(tmp_path: Path) -> None:
    # A pipe in place of the file: writes block, since nobody reads.
    files = [tmp_path / f"x_{datetime.date.today() + datetime.timedelta(days)}.log" for days in (0, 1)]
    readers = []
    for file in files:
        os.mkfifo(file)
        readers.append(os.open(file, os.O_RDONLY | os.O_NONBLOCK))
        fcntl.fcntl(readers[-1], fcntl.F_SETPIPE_SZ, 4096)
    command = [*REGISTRY, f"--archive_dir={tmp_path / 'archive'}", f"--log_file={tmp_path / 'x.log'}"]
    with subprocess.Popen(command, env=clean_environment()) as process:
        try:

            def port() -> str | None:
                for reader in readers:
                    with contextlib.suppress(BlockingIOError):
                        if match := re.search(rb"\bport=(\d+)", os.read(reader, 4096)):
                            return match[1].decode()
                return None

            make_refused_calls(int(wait_until(port)), 200)
            assert stop(process) == 0
        finally:
            process.kill()
            for reader in readers:
                os.close(reader)


def test_the_log_continues_in_a_new_file_after_a_hangup(tmp_path: Path) -> None:
    command = [*REGISTRY, f"--archive_dir={tmp_path / 'archive'}", f"--log_file={tmp_path / 'x.log'}"]
    with subprocess.Popen(command, env=clean_environment()) as process:
        try:
            wait_until(lambda: any("serving" in line for line in lines_of(tmp_path)))
            [file] = tmp_path.glob("x_*.log")
            file.rename(tmp_path / "moved")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("rescanned" in line for line in lines_of(tmp_path)))
            assert stop(process) == 0
        finally:
            process.kill()
    assert "serving" in (tmp_path / "moved").read_text()
    assert "rescanned" not in (tmp_path / "moved").read_text()
    assert "stopped" in lines_of(tmp_path)[-1]
