"""Results files of the benchmarks: one JSON file of each measurement, from which the page and its plots are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.benchmarks.commits import Commit
from tests.benchmarks.figures import Part
from tests.benchmarks.growth import Layout
from tests.benchmarks.growth_rig import Point
from tests.benchmarks.idle import IdleCell
from tests.benchmarks.overload_plan import Cell, Honest
from tests.benchmarks.path_cost import Batch
from tests.benchmarks.programs import ROOT, BenchmarkError

MEASURED = ROOT / ".bench"
"""Folder of what was measured here."""
PUBLISHED = ROOT / "docs" / "benchmarks"
"""Folder of the results and plots that the page shows."""

T = TypeVar("T")


class Overload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the overload benchmark; `quiet` is the honest user alone, by layout."""

    machine: dict[str, str]
    lead_s: float
    measured_s: float
    quiet: dict[str, Honest]
    cells: list[Cell]


class Idle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the benchmark of idle clients."""

    machine: dict[str, str]
    measured_s: float
    flood_load: int
    cells: list[IdleCell]


class PathCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the benchmark of the path; `floor` is that of the floor, in batches of the first size."""

    machine: dict[str, str]
    batches: list[Batch]
    floor: list[Batch] = []


class Kit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the benchmark of the kit: handlers alone, and contracts on a server."""

    machine: dict[str, str]
    handlers: list[Part]
    contracts: list[Part]


class Compared(msgspec.Struct, frozen=True):
    """Figures of one side in one job of the comparison."""

    job: dict[str, int]
    side: str
    median_rate: float
    median_p50_us: float
    median_p99_us: float
    rates: list[float]
    p50s_us: list[float]
    cpu_us: dict[str, float]
    """Median CPU a round trip, by process."""
    against: dict[str, list[float]]
    """The ratio to each peer: of the medians, least and most of neighbouring runs."""


class Comparison(msgspec.Struct, frozen=True):
    """Result of the comparison of sides."""

    machine: dict[str, str]
    sides: list[Compared]


class Growth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the benchmark of growth, as `growth.Figures`."""

    machine: dict[str, str]
    layouts: list[Layout]
    series: dict[str, list[Point]]
    commits: list[Commit]
    sessions: dict[str, float]
    idle_bytes: dict[str, float]
    idle: list[IdleCell]


KINDS: dict[str, type[Any]] = {
    "compare": Comparison,
    "encrypted": Comparison,
    "overload": Overload,
    "cluster": Overload,
    "idle": Idle,
    "path": PathCost,
    "kit": Kit,
    "growth": Growth,
}


def write(folder: Path, name: str, result: msgspec.Struct) -> Path:
    """Write a result into a folder as NAME.json, as a whole or not at all; return the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    target, half = folder / f"{name}.json", folder / f".{name}.json.part"
    half.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    half.replace(target)
    return target


def read(path: Path, kind: type[T]) -> T | None:
    """Return the result in a file, None where there is no file; raise BenchmarkError where it cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BenchmarkError(f"{path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise BenchmarkError(f"{path} is no result of this version ({error}): measure again") from error
