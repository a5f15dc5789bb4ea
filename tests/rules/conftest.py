"""Shared fixtures of the tests of the rules."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def hashing() -> Iterator[ThreadPoolExecutor]:
    """The executor on which transient stores compute hashes."""
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as executor:
        yield executor
