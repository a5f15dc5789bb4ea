"""How long clients needed after a fault was over until they went on."""

from statistics import quantiles

from tests.torture.several_servers.history import History, Outcome, Trouble

_NS = 10**9


def recovery_ms(history: History, trouble: Trouble, next_began_ns: int | None) -> dict[str, float]:
    """Return how long each client that was held up by a fault needed after it was over until its first success.

    A client was held up if nothing that it did succeeded in the last second before the fault was over.

    Args:
        history: The history.
        trouble: The fault.
        next_began_ns: When the next fault began; None if this was the last one.

    Returns:
        Milliseconds by client. A client without a success before the next fault is not there.
    """
    held_up = {one.client for one in history.operations if one.began_ns < trouble.ended_ns}
    first: dict[str, int] = {}
    since_ns = max(trouble.began_ns, trouble.ended_ns - _NS)
    for one in history.operations:
        if one.outcome not in (Outcome.OK, Outcome.ABSENT, Outcome.CONFLICT):
            continue
        if since_ns <= one.ended_ns < trouble.ended_ns:
            held_up.discard(one.client)
        elif one.ended_ns >= trouble.ended_ns and (next_began_ns is None or one.ended_ns < next_began_ns):
            first[one.client] = min(first.get(one.client, one.ended_ns), one.ended_ns)
    return {client: (first[client] - trouble.ended_ns) / 1e6 for client in held_up if client in first}


def kind_of(client: str) -> str:
    """Return what a client does: the second word of its name, which is that of a function of `workers`."""
    return client.split()[1]


def quartiles(values: list[float]) -> tuple[float, float, float, float]:
    """Return the quartiles and the maximum of some values; zeros if there are none."""
    if len(values) < 2:
        return (values[0],) * 4 if values else (0.0,) * 4
    low, middle, high = quantiles(values, method="inclusive")
    return low, middle, high, max(values)
