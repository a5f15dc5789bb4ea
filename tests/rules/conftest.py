"""What the tests of the rules share."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def hashing() -> Iterator[ThreadPoolExecutor]:
    """Where transient stores hash."""
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as executor:
        yield executor
