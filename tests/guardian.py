"""Runs a command that ends when the process that started this one does, in whichever way that ends.

Its input is a pipe that nobody writes to: the system closes it with the process that holds the other end. The parent
death signal of Linux does not suffice, since it is that of a thread; but here it helps where this process is killed.

    python guardian.py SIGNAL USER COMMAND...

The signal ends the command; the user runs it, and is empty for the present one. SIGTERM is passed on.
"""

import contextlib
import ctypes
import os
import pwd
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_PASSED_ON = {signal.SIGTERM}


def main() -> int:
    """Run the command, and return its exit code."""
    number, user, *command = int(sys.argv[1]), *sys.argv[2:]
    guardian = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until it can be passed on
    child = os.fork()
    if not child:
        _begin(number, user, command, guardian)

    def pass_on(received: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, received)

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        pass_on(number)

    threading.Thread(target=wait_for_end, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda received, _frame: pass_on(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _begin(number: int, user: str, command: list[str], guardian: int) -> None:
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)  # after the change of the user, which clears it
        if os.getppid() != guardian:
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
