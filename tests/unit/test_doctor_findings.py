"""Words of the doctor's findings: times and sizes in the unit that suits them."""

from __future__ import annotations

import pytest

from bester.broker.doctor.findings import size, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"), (116.0, "116 s"), (119.9, "2.0 min"), (120.0, "2.0 min"), (-3600.0, "-60.0 min"),
        (7199.99, "2.0 h"), (7200.0, "2.0 h"), (172_799.0, "2.0 days"), (10 * 86_400.0, "10.0 days"),
    ],
)  # fmt: skip
def test_time_is_told_in_the_largest_unit_of_which_it_has_two(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1.0 KiB"), (900, "900 bytes"), (1024**2 - 1, "1.0 MiB"), (1024**3 - 1, "1.0 GiB")],
)
def test_size_is_told_in_the_largest_unit_of_which_it_has_one(count: float, text: str) -> None:
    assert size(count) == text
