"""A short form of `make soak`, too short to tell of memory: visitors are served, and no descriptor of theirs stays."""

from __future__ import annotations

import pytest

from tests.soak.growth import growth
from tests.soak.play import DONE, play


async def test_no_descriptor_of_those_who_have_gone_is_left() -> None:
    result = await play(4.0, 11)
    assert all(count <= 0 for count in result.left.values()), result
    assert result.counts.keys() >= DONE
    assert len(result.samples) >= 10  # two servers, what starts their children, and three handlers each
    assert all(sampled.bytes for sampled in result.samples.values())


@pytest.mark.parametrize(
    ("samples", "grown"),
    [
        ([10.0] * 80, 0),
        ([float(number) for number in range(80)], 20),  # a quarter of the run
        ([min(number, 40.0) for number in range(80)], 0),  # whatever fills in the first half
        ([10.0 + 90.0 * (number % 3 > 0) for number in range(80)], 0),  # ups and downs
        ([80.0 - number for number in range(80)], -20),
    ],
)
def test_what_a_process_never_goes_below_tells_what_stays(samples: list[float], grown: float) -> None:
    assert growth(samples) == grown


def test_too_few_samples_tell_nothing() -> None:
    with pytest.raises(ValueError, match="too few"):
        growth([1.0] * 7)
