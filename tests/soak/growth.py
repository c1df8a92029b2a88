"""Judges whether something grows without end, from samples over a run. Pure.

A process that is at work needs now more and now less: what it never goes below tells what stays. So the run is parted
into windows, and the least of each window counts. A cache that fills in the beginning is no leak, nor is one window
that is a little higher than another: a leak is where the last half of the windows is higher than the half before by
more than `most`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median

WINDOWS = 8
"""Windows of a run. The first half of a run is for whatever fills."""


def growth(samples: Sequence[float]) -> float:
    """Return by how much the end of the run is above its middle, in the samples' unit; negative where it is below."""
    least = [min(window) for window in _windows(samples)]
    half, quarter = len(least) // 2, len(least) // 4
    return median(least[half + quarter :]) - median(least[half : half + quarter])


def _windows(samples: Sequence[float]) -> list[Sequence[float]]:
    """Part samples into windows, as even as they can be. Raises ValueError for fewer samples than windows."""
    if len(samples) < WINDOWS:
        raise ValueError(f"{len(samples)} samples are too few to tell; {WINDOWS} are the least")
    bounds = [number * len(samples) // WINDOWS for number in range(WINDOWS + 1)]
    return [samples[begin:end] for begin, end in itertools.pairwise(bounds)]
