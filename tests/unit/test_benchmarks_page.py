"""Plots, tables and sections of the benchmarks' page, from results that are made up; and the smallest real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.parsers import expat

import msgspec
import pytest

from tests.benchmarks import encrypted, kit, page, report, results
from tests.benchmarks.answers import answers
from tests.benchmarks.comparison import compare, result_of
from tests.benchmarks.figures import Job, Part, Run
from tests.benchmarks.floor_rig import FloorRig
from tests.benchmarks.idle import IdleCell, too_few_descriptors
from tests.benchmarks.overload import measure_cell
from tests.benchmarks.overload_plan import KINDS, Cell, Flood, Honest, Plan, refused_rate, served_rate
from tests.benchmarks.path_cost import PathPlan, cpu_by_stage
from tests.benchmarks.path_rig import BROKER_IN, CONFIRM, REPLY, STAGES, NoMeter, Rig
from tests.benchmarks.plot import Line, bars, lines, scale
from tests.benchmarks.programs import OPENSSL, BenchmarkError, load_generator

ECHO, UNKNOWN, STUCK = KINDS[:3]
HONEST = Honest(100, 99, 1, 1, 0, 900.0, 1500.0, 2500.0)


def a_flood(good: int = 0, bad: int = 0, unknown: int = 0) -> Flood:
    return Flood(2.0, 1000, good, bad, bad - unknown, unknown, 0, good, 0, {"loadgen": 0.2, "server": 2.0})


def a_cell(kind: str, load: int, kept: float | None) -> Cell:
    return Cell("up", kind, 1, 8, load, 0, a_flood(good=500), HONEST, 250.0, kept, 0.0, 50 << 20)


def an_overload() -> results.Overload:
    cells = [a_cell("echo", 1, 1.0), a_cell("echo", 10, 0.9), a_cell("stuck type", 10, None)]
    return results.Overload({"cores": "2"}, 1.0, 2.0, {"up": HONEST}, cells)


def test_unknown_types_are_service_to_those_who_ask_for_them_and_refusals_to_nobody_else() -> None:
    flood = a_flood(good=10, bad=100, unknown=60)
    assert (served_rate(UNKNOWN, flood), refused_rate(UNKNOWN, flood)) == (30.0, 20.0)
    assert (served_rate(STUCK, flood), refused_rate(STUCK, flood)) == (None, 50.0)
    assert served_rate(ECHO, flood) == 5.0


@pytest.mark.parametrize("values", [[0.3], [1.0, 7.0], [1234.0], [0.0], []])
def test_every_value_stands_on_its_scale(values: list[float]) -> None:
    on = scale(values)
    assert on.least == 0.0
    assert on.most >= max([*values, 0.0])
    assert on.ticks[-1] == on.most


def test_log_scale_goes_by_tens() -> None:
    on = scale([0.0, 3.0, 450.0], log=True)
    assert on.ticks == (1.0, 10.0, 100.0, 1000.0)
    assert on.share(1000.0) == 1.0
    assert on.share(0.0) == 0.0


def test_plots_are_xml_whatever_the_names_are() -> None:
    drawn = lines('a "title" & <more>', "ms", ["1 ×", "2 ×"], [Line("<b>", [1.0, None], 0), Line("x", [None, None], 1)])
    for text in (drawn, bars("none", "µs", [], {}), bars("some", "µs", ["a", "b"], {"&": [1.0, None]})):
        expat.ParserCreate().Parse(text, True)


def section(name: str) -> str:
    return f"before\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nafter\n"


@pytest.mark.parametrize("is_apart", [False, True])
def test_page_gets_tables_and_plots_between_its_markers(tmp_path: Path, is_apart: bool) -> None:
    measured, published, front = tmp_path / "measured", tmp_path / "published", tmp_path / "page.md"
    published.mkdir()
    page_of_overload = published / "more.md" if is_apart else front
    front.write_text(section("answers") + ("" if is_apart else section("overload")))
    if is_apart:
        page_of_overload.write_text(section("overload"))
    results.write(measured, "overload", an_overload())
    for _ in range(2):
        assert page.rewrite(measured, published, front) == ["overload"]
    answered, text = front.read_text(), page_of_overload.read_text()
    for each in (answered, text):
        assert each.startswith("before\n")
        assert each.endswith("after\n")
        assert "old" not in each
    assert "90% and more" in answered
    assert text.count("| 90%") == 1
    for name in ("overload-up-kept.svg", "overload-up-worst.svg"):
        assert (f"({name})" if is_apart else f"(published/{name})") in text
        expat.ParserCreate().Parse((published / name).read_bytes(), True)


@pytest.mark.parametrize("text", ["", "<!-- overload: begin -->", "<!-- overload: end --><!-- overload: begin -->"])
def test_page_without_markers_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    results.write(tmp_path, "overload", an_overload())
    with pytest.raises(BenchmarkError, match="markers"):
        page.rewrite(tmp_path, tmp_path / "published", file)
    assert file.read_text() == text


def test_pages_show_what_the_published_results_give(tmp_path: Path) -> None:
    front = Path(shutil.copy(page.PAGE, tmp_path))
    published = Path(shutil.copytree(results.PUBLISHED, tmp_path / results.PUBLISHED.name))
    assert page.rewrite(tmp_path / "nothing", published, front) == list(results.KINDS)
    for file in sorted(published.iterdir()):
        assert file.read_bytes() == (results.PUBLISHED / file.name).read_bytes(), file.name
    assert front.read_text() == page.PAGE.read_text()


def test_questions_without_results_are_left_out() -> None:
    empty = {
        "compare": results.Comparison({}, []), "encrypted": results.Comparison({}, []),
        "path": results.PathCost({}, []), "idle": results.Idle({}, 1.0, 10, [IdleCell(0)]),
        "growth": results.Growth({}, [], {}, [], {}, {}, []),
    }  # fmt: skip
    assert answers(empty, "folder") == []


def test_unreadable_results_are_named(tmp_path: Path) -> None:
    file = tmp_path / "idle.json"
    file.write_text(json.dumps({"machine": {}}))
    with pytest.raises(BenchmarkError, match=r"idle\.json"):
        results.read(file, results.Idle)


def test_too_low_hard_limit_is_named() -> None:
    assert too_few_descriptors(5000, 20_000) is None
    assert "1,024 descriptors" in str(too_few_descriptors(5000, 1024))


def honest(p99_us: float) -> Honest:
    return Honest(10, 10, 0, 0, 0, 1000.0, p99_us, 9000.0)


@pytest.mark.parametrize(("p99_us", "shown"), [(2000.0, "1.00 ×"), (3000.0, "1.50 ×"), (500.0, "0.25 ×")])
def test_idle_cell_is_compared_with_no_idle_clients(p99_us: float, shown: str) -> None:
    cells = [
        IdleCell(0, None, None, honest(900.0), honest(2000.0), 1.0),
        IdleCell(5000, None, 2048.0, honest(950.0), honest(p99_us), 1.0),
    ]
    text = page.idle_text(results.Idle({}, 1.0, 10, cells))
    assert shown in next(line for line in text.splitlines() if "5,000" in line)


def test_idle_cell_that_was_skipped_has_a_row() -> None:
    shown = page.idle_text(results.Idle({}, 1.0, 10, [IdleCell(5000, skipped="too few"), IdleCell(0)]))
    assert "not measured" in shown
    assert "too few" in shown


@pytest.mark.parametrize("make", [Rig, FloorRig])
@pytest.mark.parametrize(("batch", "body_bytes"), [(1, 100), (7, 1024), (50, 20_000)])
def test_path_reports_every_message(make: type[Rig] | type[FloorRig], batch: int, body_bytes: int) -> None:
    rig = make(batch, body_bytes, NoMeter())
    logins = rig.good
    for _ in range(3):
        rig.round()
    assert rig.good - logins == rig.sent == 3 * 8 * batch


def test_path_is_measured_by_stage() -> None:
    by_stage, _ = cpu_by_stage(5, PathPlan(messages=80, repeats=1))
    assert tuple(by_stage) == STAGES
    of_floor, _ = cpu_by_stage(5, PathPlan(messages=80, repeats=1), "floor")
    assert [of_floor[stage] for stage in (BROKER_IN, REPLY, CONFIRM)] == [0.0] * 3


def test_smallest_overload_is_measured(tmp_path: Path) -> None:
    for program in ("flood", "honest"):
        load_generator(tmp_path, program)
    cell = measure_cell(tmp_path, "up", tmp_path, 1, Plan((1,), (1,), 0.0, 0.3), KINDS[5], 1, 1, 0.0)
    assert cell.flood.sent > 0
    assert cell.honest.asked > 0
    assert msgspec.json.decode(msgspec.json.encode(cell), type=Cell) == cell


def test_the_kit_is_shown_against_the_loop_and_a_contract_against_none() -> None:
    handlers = [
        Part("loop", [200.0, 100.0, 300.0], [4.0, 4.0, 4.0]),
        Part("kit", [100.0, 100.0, 150.0], [6.0, 5.0, 7.0]),
    ]
    contracts = [Part("off", [10.0], [20.0]), Part("on", [9.0], [21.0])]
    text = page.text_of("kit", results.Kit({"cores": "2"}, handlers, contracts))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")]
    assert cells[1] == ["loop", "200 (100–300)", "4.00", "", "", ""]
    assert cells[2][:5] == ["kit", "100 (100–150)", "6.00", "0.50 × (0.50–1.00)", "1.50 × (1.25–1.75)"]
    assert cells[5][:5] == ["on", "9 (9–9)", "21.00", "0.90 × (0.90–0.90)", "1.05 × (1.05–1.05)"]


def test_the_smallest_run_of_the_handlers_measures_both() -> None:
    with report.short_folder() as folder:
        found = kit.handlers(Path(folder), kit.KitPlan(messages=640, runs=1), lambda _: None)
    assert [part.side for part in found] == ["loop", "kit"]
    assert all(len(part.rates) == len(part.cpu_us) == 1 and part.rates[0] > 0 for part in found)


def a_run(rate: float) -> Run:
    return Run("bester", 8, 50, 100, 1000, 1000 / rate, 1.0, 2.0, 3.0, {"loadgen": 0.1, "server": 0.5})


def test_encrypted_sides_are_shown_against_their_plain_twins() -> None:
    rates = {encrypted.PLAIN: 100.0, encrypted.TLS: 90.0, encrypted.OPEN: 200.0, encrypted.CURVE: 100.0}
    job = Job(100, 8, 50, 1000, 100)
    result = result_of({job: {side: [a_run(rate)] for side, rate in rates.items()}}, {}, encrypted.peers_of)
    text = page.text_of("encrypted", result)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n") if line.startswith("| ")]
    ratios = {row[1]: row[6:] for row in cells[1:]}
    assert cells[0][6:] == [f"against {encrypted.PLAIN}", f"against {encrypted.OPEN}"]
    assert ratios[encrypted.PLAIN] == ratios[encrypted.OPEN] == ["", ""]
    assert ratios[encrypted.TLS] == ["0.90 × (0.90–0.90)", ""]
    assert ratios[encrypted.CURVE] == ["", "0.50 × (0.50–0.50)"]


@pytest.mark.skipif(not OPENSSL.exists(), reason="libssl-dev is not installed: apt-get install libssl-dev")
def test_smallest_run_by_tls_and_by_curve_is_measured() -> None:
    job = Job(100, 2, 5, 50, 5)
    found = compare([job], 1, [encrypted.over_tls, encrypted.handler_by_curve], lambda _: None, tls=True)
    assert {side: [run.messages for run in runs] for side, runs in found[job].items()} == {
        encrypted.TLS: [50],
        encrypted.CURVE: [50],
    }
