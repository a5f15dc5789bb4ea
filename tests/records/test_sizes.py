"""Sizes for people have binary units."""

import pytest

from cogment_model_registry.records.sizes import size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (5 * 1024**3, "5.0 GiB")),
        (2**63 - 1, "8.0 EiB"),
        (0.25, "0 B"),  # a speed
    ],
)
def test_sizes_have_binary_units(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text
