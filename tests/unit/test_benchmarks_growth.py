"""Growth and scale: tables from made-up results, the smallest real runs, and the page that shows the arithmetic."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.benchmarks import commits, growth_rig, page, results, scale
from tests.benchmarks.commits import Commit
from tests.benchmarks.growth import Layout
from tests.benchmarks.growth_rig import Point
from tests.benchmarks.idle import IdleCell
from tests.benchmarks.overload_plan import Honest
from tests.benchmarks.programs import BenchmarkError
from tests.benchmarks.scale import Costs, Demand


def cost(each: float) -> dict[str, float]:
    return {"broker": each, "bridge": 2 * each, "handler": each}


def honest(p99_us: float) -> Honest:
    return Honest(10, 10, 0, 0, 0, 1000.0, p99_us, 9000.0)


def a_growth() -> results.Growth:
    loads = (1, 8, 50, 10.0), (2, 8, 50, 11.0), (1, 8, 1, 40.0), (2, 8, 1, 60.0), (1, 4, 1, 50.0), (2, 16, 1, 38.0)
    layouts = [Layout(brokers, depth, [cost(each)] * 3, connections) for brokers, connections, depth, each in loads]
    layouts.append(Layout(1, 50, [cost(10.5)] * 3, 8, servers=2))
    series = {
        "users": [Point(1, 50.0), Point(1_000, 55.0)],
        "targets of one sendClients": [Point(1, 50.0), Point(1_000, 5_000.0)],
    }
    stored = [Commit("SQLite", 256, 1.0, 10.0, 0.0), Commit("PostgreSQL", 256, 9.0, 10.0, 30.0)]
    cells = [IdleCell(0, None, None, honest(2000.0)), IdleCell(10_000, None, 1.0, honest(3000.0))]
    idle_bytes = {"broker": 1024.0, "bridge": 2048.0}
    sessions = {"password": 20_000.0, "announced": 1.0}
    return results.Growth({"cores": "2"}, layouts, series, stored, sessions, idle_bytes, cells)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")]


def test_growth_is_shown_against_one_of_each() -> None:
    found = rows(page.text_of("growth", a_growth()))
    assert found[2][:3] + found[2][-3:] == ["2 brokers, 2 bridges", "8 × 50 a bridge", "200", "44.0", "1.10 ×", ""]
    assert [each[1:3] + each[-2:] for each in found[4:7]] == [
        ["8 × 1 a bridge", "4", "1.50 ×", "1.20 ×"],
        ["4 × 1 a bridge", "4", "", ""],
        ["16 × 1 a bridge", "8", "", "0.95 ×"],
    ]
    assert found[7][:3] + found[7][-2:] == [
        "2 servers of 1 broker, 1 bridge",
        "8 × 50 a bridge",
        "400",
        "1.05 ×",
        "1.05 ×",
    ]
    assert ["1,000", "55.0", "1.10 ×"] in found
    assert ["1,000", "5,000.0", "5.0"] in found
    assert ["PostgreSQL", "256", "9.0", "10.0", "30.0"] in found
    assert found[-1] == ["10,000", "1.0", "2.0", "3.0", "1.50 ×"]
    assert set(page.growth_plots(a_growth())) == {"growth-brokers.svg", "growth-flat.svg", "growth-targets.svg"}


@pytest.mark.parametrize(
    ("demand", "brokers", "bridges", "database"),
    [
        (Demand(100, 1, 0.0), 1, 1, 0.0),
        (Demand(1_000_000, 1, 0.0), 1, 20, 0.0),  # connections
        (Demand(100, 600_000, 0.0), 10, 20, 0.0),  # messages
        (Demand(100, 600_000, 1.0), 20, 20, 18.0),  # the broker writes them, too
    ],
)
def test_needs_follow_from_costs(demand: Demand, brokers: int, bridges: int, database: float) -> None:
    found = scale.need(a_growth(), demand, Costs(10.0, 20.0, 1.0))
    assert (found.brokers, found.bridges) == (brokers, bridges)
    assert found.database_cores == pytest.approx(database)
    assert found.links == brokers * (bridges + found.handlers)
    assert found.brokers_gib == pytest.approx(demand.users * 1024 / 2**30 * brokers)
    assert found.logins_s == pytest.approx(demand.users * 0.02 / 2 / brokers)


def test_costs_are_those_of_several_brokers() -> None:
    assert scale.costs_of(a_growth(), in_batches=True) == (11.0, 22.0, 11.0)
    assert scale.costs_of(a_growth(), in_batches=False) == (60.0, 120.0, 60.0)


@pytest.mark.parametrize("missing", ["layouts", "commits"])
def test_results_without_several_brokers_or_commits_are_refused(missing: str) -> None:
    with pytest.raises(BenchmarkError, match="measure again"):
        scale.section(msgspec.structs.replace(a_growth(), **{missing: []}))


def test_page_shows_what_the_published_results_give() -> None:
    text = scale.PAGE.read_text()
    assert scale.rewritten(text, scale.published()) == text


@pytest.mark.parametrize(
    "fixed",
    [{"users": 30}, {"types": 30}, {"workers": 30}, {"users": 30, "targets": 30}, {"users": 600, "targets": 600}],
)
def test_rig_reports_every_message(fixed: dict[str, int]) -> None:
    rig = growth_rig.GrowthRig(**fixed)
    before = rig.good
    assert rig.run(40) > 0
    assert rig.good - before == 40


def test_smallest_series_and_costs_of_sessions() -> None:
    assert [point.size for point in growth_rig.series("targets", (1, 5), 10, 1, users=5)] == [1, 5]
    assert all(cost > 0 for cost in growth_rig.costs_of_sessions(100).values())


def test_commits_in_sqlite_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "binaries", lambda: None)
    (found,) = commits.measure(tmp_path, lambda _: None, {4: 3})
    assert (found.store, found.messages, found.database_us) == ("SQLite", 4, 0.0)
