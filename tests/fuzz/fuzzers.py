"""The fuzzers by name, and how many steps one story of each has."""

from __future__ import annotations

from typing import NamedTuple

from tests.fuzz import bridge, frames, router, wire
from tests.fuzz.play import Play


class Fuzzer(NamedTuple):
    """`length`: steps of one story, which take about a tenth of a second. `short`: seeds that the suite plays."""

    play: Play
    length: int
    short: int


FUZZERS = {
    "wire": Fuzzer(wire.play, 500, 10),
    "frames": Fuzzer(frames.play, 500, 8),
    "bridge": Fuzzer(bridge.play, 120, 10),
    "router": Fuzzer(router.play, 200, 16),
}
