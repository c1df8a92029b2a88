"""The benchmark's own arithmetic, its table, and its care for processes. No figure is judged here."""

from __future__ import annotations

import json
import os
import select
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.comparison import jobs
from tests.benchmarks.figures import Job, Run, Spread, over_runs, parse_run, ratio, spread
from tests.benchmarks.processes import Running, children
from tests.benchmarks.programs import BenchmarkError

PIPELINED = Job(100, 8, 50, 1000, 100)
CLOSED = Job(100, 1, 1, 100, 10)
LINE = (
    '{"protocol":"nats","connections":8,"depth":50,"body_bytes":100,"messages":1000,"seconds":0.5,'
    '"p50_us":10.5,"p99_us":20.5,"max_us":30.5,"cpu_s":{"loadgen":0.1,"server":0.75}}\n'
)


def a_run(job: Job, seconds: float, p50_us: float) -> Run:
    return Run(
        protocol="bester",
        connections=job.connections,
        depth=job.depth,
        body_bytes=job.body_bytes,
        messages=job.messages,
        seconds=seconds,
        p50_us=p50_us,
        p99_us=p50_us * 2,
        max_us=p50_us * 3,
        cpu_s={"loadgen": seconds / 10, "server": seconds, "handler": seconds / 2},
    )


def test_a_line_of_the_load_generator_is_read() -> None:
    run = parse_run(LINE)
    assert (run.rate, run.busy("server"), run.busy("loadgen")) == (2000.0, 1.5, 0.2)
    assert (run.p50_us, run.p99_us, run.max_us) == (10.5, 20.5, 30.5)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "loadgen: nothing came for 10 s",
        LINE[:-5],
        LINE.replace("0.5,", "0.0,", 1),
        LINE.replace('"messages":1000', '"messages":0'),
        LINE.replace('"max_us":30.5,', ""),
        LINE.replace("10.5", '"fast"'),
        LINE.replace('"depth"', '"width"'),
    ],
)
def test_any_other_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"load generator|measured nothing"):
        parse_run(line)


def test_the_median_stands_between_least_and_most() -> None:
    assert spread([5.0]) == Spread(5.0, 5.0, 5.0)
    assert spread([9.0, 1.0, 2.0]) == Spread(2.0, 1.0, 9.0)
    assert spread([4.0, 1.0, 2.0, 9.0]) == Spread(3.0, 1.0, 9.0)
    runs = [a_run(PIPELINED, seconds, 1.0) for seconds in (1.0, 0.5, 0.25)]
    assert over_runs(runs, lambda run: run.rate) == Spread(2000.0, 1000.0, 4000.0)


def test_pipelined_sides_are_compared_by_rate_and_the_closed_loop_by_latency() -> None:
    assert CLOSED.closed_loop
    assert not PIPELINED.closed_loop
    ours = [a_run(PIPELINED, 1.0, 7.0), a_run(PIPELINED, 0.5, 7.0), a_run(PIPELINED, 0.25, 7.0)]
    theirs = [a_run(PIPELINED, 1.0, 1.0), a_run(PIPELINED, 1.0, 1.0), a_run(PIPELINED, 1.0, 1.0)]
    assert ratio(PIPELINED, ours, theirs) == Spread(2.0, 1.0, 4.0)
    assert ratio(CLOSED, [a_run(CLOSED, 1.0, 50.0)], [a_run(CLOSED, 9.0, 40.0)]) == Spread(1.25, 1.25, 1.25)
    with pytest.raises(ValueError, match="zip"):
        ratio(PIPELINED, ours, theirs[:2])


def test_every_size_is_measured_under_load_and_alone() -> None:
    assert jobs(100_000, [100, 1024]) == [
        Job(100, 8, 50, 100_000, 10_000),
        Job(100, 1, 1, 10_000, 1000),
        Job(1024, 8, 50, 100_000, 10_000),
        Job(1024, 1, 1, 10_000, 1000),
    ]


def results(loadgen_share: float = 0.1) -> dict[Job, dict[str, list[Run]]]:
    ours = a_run(PIPELINED, 0.5, 70.0)
    ours.cpu_s["loadgen"] = ours.seconds * loadgen_share
    return {
        PIPELINED: {"nats": [a_run(PIPELINED, 1.0, 99.0)], "bester up": [ours]},
        CLOSED: {"nats": [a_run(CLOSED, 1.0, 40.0)], "bester up": [a_run(CLOSED, 1.0, 50.0)]},
    }


def shown(found: report.Results) -> str:
    page = StringIO()
    report.show(Console(file=page, width=report.PIPED_WIDTH), found, {"cores": "2 × some"})
    return page.getvalue()


def test_the_table_holds_both_raw_figures_and_the_ratio() -> None:
    page = shown(results())
    for expected in ("1,000", "2,000", "2.00 × nats", "1.25 × nats", "handler 50%", "≥ 0.65 × nats", "cores 2 × some"):
        assert expected in page
    assert "at most 10% of a core" in page
    assert "was not the bottleneck" in page


def test_a_busy_load_generator_is_named() -> None:
    assert "may have been the bottleneck" in shown(results(loadgen_share=0.95))


def test_json_holds_every_run() -> None:
    found = report.as_json(results(), {"cores": "2"})
    read = json.loads(json.dumps(found))["results"]
    assert [(one["side"], one["against_nats"] and one["against_nats"]["median"]) for one in read] == [
        ("nats", None),
        ("bester up", 2.0),
        ("nats", None),
        ("bester up", 1.25),
    ]
    assert read[1]["runs"][0]["rate"] == 2000.0
    assert read[1]["runs"][0]["cpu_s"]["server"] == 0.5


def test_a_process_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print('started', flush=True)\n"
        "child.wait()\n"
    )
    with Running("parent", [sys.executable, "-c", script], tmp_path) as parent:
        parent.wait_until(lambda: "started" in parent.log())
        (child,) = children(parent.pid)
        handle = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([handle], [], [], 10.0)
        assert ended == [handle]
    finally:
        os.close(handle)
    assert children(parent.pid) == []


def test_dead_process_is_reported_with_its_last_line(tmp_path: Path) -> None:
    dying = Running(
        "dying", [sys.executable, "-c", "import sys; print('one', flush=True); sys.exit('port in use')"], tmp_path
    )
    with dying, pytest.raises(BenchmarkError, match="dying ended with status 1: port in use"):
        dying.wait_until(lambda: False)
