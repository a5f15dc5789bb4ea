"""A clock for limits of callers that stands still until a test moves it."""

import pytest


class Clock:
    """The clock of the limits of a server in this process; it stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the limits of servers in this process have for the rest of a test."""
    clock = Clock()
    monkeypatch.setattr("cogment_model_registry.serving.caller_limits.monotonic", clock)
    return clock
