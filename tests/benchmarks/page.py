"""The measured sections of docs/benchmarks.md, and of the pages in the folder beside: tables and plots from the
results, between markers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.benchmarks.answers import answers
from tests.benchmarks.figures import Part, ratio_of, spread
from tests.benchmarks.growth import Layout
from tests.benchmarks.idle import IdleCell
from tests.benchmarks.overload_plan import KINDS as FLOODS
from tests.benchmarks.overload_plan import Cell, Honest
from tests.benchmarks.path_rig import STAGES
from tests.benchmarks.plot import Line, bars, lines
from tests.benchmarks.programs import ROOT, BenchmarkError
from tests.benchmarks.results import KINDS, MEASURED, PUBLISHED, Comparison, Growth, Idle, Kit, Overload, PathCost, read

PAGE = ROOT / "docs" / "benchmarks.md"
GOAL_KEPT = 0.8
GOAL_WORST_MS = 1000.0
LAYOUT_NAMES = {
    "up": "`bester up`",
    "apart": "broker, bridge and handler apart",
    "cluster": "two brokers, one of them killed",
}


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded so that a terminal shows it as well."""
    all_rows = [list(heading), *map(list, rows)]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(heading))]
    lines_ = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in all_rows
    ]
    return "\n".join([lines_[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines_[1:]])


def machine_line(machine: Mapping[str, str]) -> str:
    """Return the machine and the versions in one line."""
    return " · ".join(f"{name} {value}" for name, value in machine.items())


def _ms(us: float) -> str:
    return f"{us / 1000:,.1f}" if us < 10_000 else f"{us / 1000:,.0f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _honest(honest: Honest | None) -> list[str]:
    if honest is None:
        return ["–"] * 4
    return [_ms(honest.p50_us), _ms(honest.p99_us), _ms(honest.worst_us), _share(honest.share_good)]


# --- overload --------------------------------------------------------------------------------------------------------

OVERLOAD_HEADING = (
    "flood", "users", "load", "served/s", "kept", "refused/s", "honest p50 ms", "p99", "worst", "good", "memory MiB",
    "CPU: server", "handler", "generator",
)  # fmt: skip


def _busy(cell: Cell, *labels: str) -> str:
    return _share(sum(cell.flood.cpu_s.get(label, 0.0) for label in labels) / cell.flood.seconds)


def overload_rows(cells: Iterable[Cell]) -> list[list[str]]:
    """Return a row for each cell."""
    return [
        [
            cell.kind, str(cell.users), f"{cell.load} ×", "–" if cell.served is None else f"{cell.served:,.0f}",
            _share(cell.kept), f"{cell.refused:,.0f}", *_honest(cell.honest), f"{cell.memory_bytes / 2**20:,.0f}",
            _busy(cell, "server", "broker", "bridge"), _busy(cell, "handler"), _busy(cell, "loadgen"),
        ]
        for cell in cells
    ]  # fmt: skip


def overload_text(result: Overload) -> str:
    """Return the tables of the overload benchmark."""
    parts = []
    for layout, honest in result.quiet.items():
        p50, p99, worst, _ = _honest(honest)
        cells = [cell for cell in result.cells if cell.layout == layout]
        parts.append(
            f"{LAYOUT_NAMES.get(layout, layout)}, {result.measured_s:g} s each; the honest user alone: "
            f"p50 {p50} ms, p99 {p99} ms, worst {worst} ms."
        )
        heading, rows = [*OVERLOAD_HEADING], overload_rows(cells)
        if layout == "cluster":
            heading.append("lost")
            rows = [
                [*row, f"{cell.flood.lost + cell.honest.unanswered}"] for row, cell in zip(rows, cells, strict=True)
            ]
        parts.append(table(heading, rows))
    return "\n\n".join([*parts, machine_line(result.machine)])


def overload_plots(result: Overload) -> dict[str, str]:
    """Return the plots of the overload benchmark, by name of the file."""
    found = {}
    for layout in result.quiet:
        cells = [cell for cell in result.cells if cell.layout == layout]
        loads = sorted({cell.load for cell in cells})
        by = {(cell.kind, cell.users, cell.load): cell for cell in cells}
        kept, worst = [], []
        for colour, kind in enumerate(FLOODS):
            for users in sorted({cell.users for cell in cells}):
                here = [by.get((kind.name, users, load)) for load in loads]
                name = f"{kind.name}, {users} user{'s' if users > 1 else ''}"
                shares = [cell.kept if cell else None for cell in here]
                if any(share is not None for share in shares):
                    kept.append(Line(name, shares, colour, dashed=users > 1))
                times = [cell.honest.worst_us / 1000 if cell else None for cell in here]
                worst.append(Line(name, times, colour, dashed=users > 1))
        places = [f"{load} ×" for load in loads]
        where = LAYOUT_NAMES.get(layout, layout).replace("`", "")
        found[f"overload-{layout}-kept.svg"] = lines(
            f"Share of the peak that is kept, {where}", "served at 1 × = 1", places, kept, goal=("goal 0.8", GOAL_KEPT)
        )
        found[f"overload-{layout}-worst.svg"] = lines(
            f"Longest wait of an honest user, {where}", "ms", places, worst, log=True, goal=("goal 1 s", GOAL_WORST_MS)
        )
    return found


# --- idle clients ----------------------------------------------------------------------------------------------------

IDLE_HEADING = (
    "idle clients", "KiB each", "p50 ms", "p99", "worst", "good", "beside a flood: p50 ms", "p99", "worst", "good",
    "p99 against no idle clients", "flood served/s",
)  # fmt: skip


def _idle_row(cell: IdleCell, bare: Honest | None) -> list[str]:
    """Return the row of so many idle clients; `bare` is the honest user beside a flood without any."""
    if cell.skipped is not None:
        return [f"{cell.clients:,}", "not measured", *["–"] * (len(IDLE_HEADING) - 2)]
    each = "–" if cell.client_bytes is None else f"{cell.client_bytes / 1024:.1f}"
    ratio = "–"
    if cell.flooded is not None and bare is not None and bare.p99_us:
        ratio = f"{cell.flooded.p99_us / bare.p99_us:.2f} ×"
    return [f"{cell.clients:,}", each, *_honest(cell.quiet), *_honest(cell.flooded), ratio, f"{cell.served:,.0f}"]


def idle_text(result: Idle) -> str:
    """Return the table of the benchmark of idle clients."""
    skipped = [
        f"{cell.clients:,} idle clients were not measured: {cell.skipped}." for cell in result.cells if cell.skipped
    ]
    bare = next((cell.flooded for cell in result.cells if not cell.clients), None)
    rows = [_idle_row(cell, bare) for cell in result.cells]
    return "\n\n".join([table(IDLE_HEADING, rows), *skipped, machine_line(result.machine)])


def idle_plots(result: Idle) -> dict[str, str]:
    """Return the plot of the benchmark of idle clients, by name of the file."""
    cells = [cell for cell in result.cells if cell.quiet is not None and cell.flooded is not None]
    groups = {
        "alone": [cell.quiet.p99_us / 1000 for cell in cells if cell.quiet],
        "beside a flood": [cell.flooded.p99_us / 1000 for cell in cells if cell.flooded],
    }
    places = [f"{cell.clients:,} idle" for cell in cells]
    return {"idle.svg": bars("p99 of an honest user beside idle clients", "ms", places, groups)}


# --- the path --------------------------------------------------------------------------------------------------------


def path_text(result: PathCost) -> str:
    """Return the table of the path's stages, beside those of the floor."""
    sides = [(f"batches of {batch.batch}", batch) for batch in result.batches]
    sides += [(f"the floor, batches of {batch.batch}", batch) for batch in result.floor]
    counted = [(name, batch) for name, batch in sides if batch.instructions]
    heading = ["stage", *(f"µs, {name}" for name, _ in sides), *(f"instructions, {name}" for name, _ in counted)]
    rows = [
        [stage, *(_some(batch.cpu_us[stage], ".2f") for _, batch in sides)]
        + [_some(batch.instructions[stage], ",") for _, batch in counted]
        for stage in STAGES
    ]
    rows.append(
        ["sum of the stages", *(f"{sum(batch.cpu_us.values()):.2f}" for _, batch in sides)]
        + [f"{sum(batch.instructions.values()):,}" for _, batch in counted]
    )
    rows.append(
        ["whole path, no clocks inside", *(f"{batch.whole_us:.2f}" for _, batch in sides)]
        + [f"{batch.whole_instructions:,}" for _, batch in counted]
    )
    return "\n\n".join([table(heading, rows), machine_line(result.machine)])


def _some(cost: float, form: str) -> str:
    return format(cost, form) if cost else "–"


def path_plots(result: PathCost) -> dict[str, str]:
    """Return the plot of the path's stages, by name of the file."""
    groups = {f"batches of {batch.batch}": [batch.cpu_us[stage] for stage in STAGES] for batch in result.batches}
    return {"path.svg": bars("CPU a message, by stage", "µs", STAGES, groups)}


# --- the comparison --------------------------------------------------------------------------------------------------


def _job(job: Mapping[str, int]) -> str:
    closed = job["connections"] * job["depth"] == 1
    kind = "closed loop" if closed else f"pipelined {job['connections']} × {job['depth']}"
    return f"{kind}, {job['body_bytes']:,} B"


def compare_text(result: Comparison) -> str:
    """Return the table of the comparison."""
    peers = list(dict.fromkeys(peer for side in result.sides for peer in side.against))
    heading = [
        "job, body",
        "side",
        "round trips/s",
        "p50 µs",
        "p99 µs",
        "CPU µs a round trip",
        *(f"against {peer}" for peer in peers),
    ]
    rows = [
        [
            _job(side.job), side.side, f"{side.median_rate:,.0f} ({min(side.rates):,.0f}–{max(side.rates):,.0f})",
            f"{side.median_p50_us:,.0f}", f"{side.median_p99_us:,.0f}",
            ", ".join(f"{label} {cost:.1f}" for label, cost in side.cpu_us.items() if label != "loadgen"),
            *(_ratio(side.against.get(peer)) for peer in peers),
        ]
        for side in result.sides
    ]  # fmt: skip
    return "\n\n".join([table(heading, rows), machine_line(result.machine)])


def _ratio(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} × ({found[1]:.2f}–{found[2]:.2f})"


def compare_plots(result: Comparison) -> dict[str, str]:
    """Return the plots of the comparison, by name of the file: throughput, and latency in the closed loop."""
    found = {}
    for closed, name, title, unit in (
        (False, "compare-rate.svg", "Round trips a second, pipelined", "thousands a second"),
        (True, "compare-latency.svg", "Median latency, closed loop", "µs"),
    ):
        chosen = [side for side in result.sides if (side.job["connections"] * side.job["depth"] == 1) is closed]
        if not chosen:
            continue
        places = list(dict.fromkeys(_job(side.job) for side in chosen))
        groups: dict[str, list[float | None]] = {side.side: [None] * len(places) for side in chosen}
        for side in chosen:
            figure = side.median_p50_us if closed else side.median_rate / 1000
            groups[side.side][places.index(_job(side.job))] = figure
        found[name] = bars(title, unit, places, groups)
    return found


def encrypted_plots(result: Comparison) -> dict[str, str]:
    """Return no plots: the ratios are the result, and stand in the table."""
    return {}


# --- the kit ---------------------------------------------------------------------------------------------------------


def kit_text(result: Kit) -> str:
    """Return the tables of the kit: the first side of each is what the others are compared with."""
    handlers = _kit_table("handler", "handler's CPU µs", result.handlers, "≥ 0.8 × the rate of the loop")
    contracts = _kit_table("contract", "CPU µs, server and handler", result.contracts, "≤ 1.1 × the CPU without")
    return "\n\n".join([handlers, contracts, machine_line(result.machine)])


def _kit_table(side: str, cost: str, parts: Sequence[Part], goal: str) -> str:
    first = parts[0]
    rows = []
    for part in parts:
        rates, spent = spread(part.rates), spread(part.cpu_us)
        other = part is not first
        rows.append(
            [
                part.side, f"{rates.median:,.0f} ({rates.least:,.0f}–{rates.most:,.0f})", f"{spent.median:.2f}",
                _ratio(ratio_of(part.rates, first.rates)) if other else "",
                _ratio(ratio_of(part.cpu_us, first.cpu_us)) if other else "", goal if other else "",
            ]
        )  # fmt: skip
    return table([side, "messages/s", cost, "rate against", "CPU against", "goal"], rows)


def kit_plots(result: Kit) -> dict[str, str]:
    """Return no plots: two numbers need none."""
    return {}


# --- growth ----------------------------------------------------------------------------------------------------------


def growth_text(result: Growth) -> str:
    """Return the tables of the benchmark of growth."""
    return "\n\n".join(
        [
            *_layout_tables(result),
            *_series_tables(result),
            _commits(result),
            *_idle_tables(result),
            machine_line(result.machine),
        ]
    )


def _layout_tables(result: Growth) -> list[str]:
    """Return the table of brokers and bridges; each row of several is compared with one broker under the same load of a
    bridge, and with one that has as many messages in flight on a link, and so the same batches. Rows of two servers
    that have nothing to do with each other are compared in the same way."""
    rows = []
    for layout in result.layouts:
        several = layout.brokers > 1 or layout.servers > 1
        name = f"{layout.brokers} brokers, {layout.brokers} bridges" if layout.brokers > 1 else "1 broker, 1 bridge"
        name = name if layout.servers == 1 else f"{layout.servers} servers of {name}"
        single = [each for each in result.layouts if each.brokers == each.servers == 1 and several]
        load, link = (layout.connections, layout.depth), (layout.per_link, layout.depth)
        rows.append(
            [
                name, f"{layout.connections} × {layout.depth} a bridge", f"{layout.per_link:.0f}",
                *(f"{layout.cpu_us(part):.1f}" for part in layout.runs[0]), f"{layout.cpu_us():.1f}",
                _against(layout, [each for each in single if (each.connections, each.depth) == load]),
                _against(layout, [each for each in single if (each.per_link, each.depth) == link]),
            ]
        )  # fmt: skip
    kinds = list(result.layouts[0].runs[0]) if result.layouts else []
    heading = ["processes", "in flight", "on a link", *(f"{kind} µs" for kind in kinds), "together"]
    heading += ["against one, same load of a bridge", "against one, same batches"]
    return [table(heading, rows), "Goal: at most 1.15 ×."] if rows else []


def _against(layout: Layout, others: list[Layout]) -> str:
    return f"{layout.cpu_us() / others[0].cpu_us():.2f} ×" if others else ""


def _series_tables(result: Growth) -> list[str]:
    found = []
    for name, points in result.series.items():
        linear = "target" in name
        heading = [name, "CPU µs a message", *(["µs a target"] if linear else ["against one"])]
        first = points[0].cpu_us
        rows = []
        for point in points:
            each = f"{point.cpu_us / point.size:,.1f}" if linear else f"{point.cpu_us / first:.2f} ×"
            rows.append([f"{point.size:,}", f"{point.cpu_us:,.1f}", each])
        goal = "Goal: linear in the number of targets." if linear else "Goal: at most 1.2 ×."
        found += [table(heading, rows), goal]
    return found


def _commits(result: Growth) -> str:
    rows = [
        [each.store, str(each.messages), f"{each.ms:.1f}", f"{each.broker_us:.1f}", f"{each.database_us:.1f}"]
        for each in result.commits
    ]
    heading = ["store", "messages a commit", "median ms", "broker CPU µs a message", "database CPU µs a message"]
    sessions = result.sessions
    check, announced = f"{sessions['password'] / 1000:,.1f} ms", f"{sessions['announced']:.1f} µs"
    text = f"CPU to check a password: {check}; of a broker, for a session that a bridge announces to it: {announced}."
    return f"{table(heading, rows)}\n\n{text}"


def _idle_tables(result: Growth) -> list[str]:
    skipped = [
        f"{cell.clients:,} idle clients were not measured: {cell.skipped}." for cell in result.idle if cell.skipped
    ]
    bare, *others = result.idle or [IdleCell(0)]
    rows = [
        [
            f"{cell.clients:,}", *(f"{each / 1024:.1f}" for each in result.idle_bytes.values()), _ms(cell.quiet.p99_us),
            f"{cell.quiet.p99_us / bare.quiet.p99_us:.2f} ×",
        ]
        for cell in others
        if cell.quiet is not None and bare.quiet is not None
    ]  # fmt: skip
    kinds = [f"{kind} KiB each" for kind in result.idle_bytes]
    heading = ["idle clients", *kinds, "honest p99 ms", "against none"]
    goal = "Goals: at most 4 KiB each in the bridge, and 2 × the p99."
    return [*([table(heading, rows), goal] if rows else []), *skipped]


def growth_plots(result: Growth) -> dict[str, str]:
    """Return the plots of growth, by name of the file: one of everything that should be flat, one of targets."""
    places = sorted({point.size for points in result.series.values() for point in points})
    flat: list[Line] = []
    linear: list[Line] = []
    for colour, (name, points) in enumerate(result.series.items()):
        costs = {point.size: point.cpu_us for point in points}
        of = [costs.get(place) for place in places]
        (linear if "target" in name else flat).append(Line(name, of, colour))
    names = [f"{place:,}" for place in places]
    loads = dict.fromkeys((layout.connections, layout.depth) for layout in result.layouts)
    layouts: dict[str, list[float | None]] = {}
    for layout in result.layouts:
        servers = "" if layout.servers == 1 else f"{layout.servers} servers of "
        costs_of = layouts.setdefault(f"{servers}{layout.brokers} × broker, bridge", [None] * len(loads))
        costs_of[list(loads).index((layout.connections, layout.depth))] = layout.cpu_us()
    depths = [f"{connections} × {depth}" for connections, depth in loads]
    return {
        "growth-brokers.svg": bars("CPU a message, all processes", "µs", depths, layouts),
        "growth-flat.svg": lines("CPU a message beside so many types, workers, users", "µs", names, flat),
        "growth-targets.svg": lines("CPU of a message to so many users", "µs", names, linear, log=True),
    }


# --- the page --------------------------------------------------------------------------------------------------------

TEXTS: dict[str, Any] = {
    "compare": compare_text,
    "encrypted": compare_text,
    "overload": overload_text,
    "cluster": overload_text,
    "idle": idle_text,
    "path": path_text,
    "kit": kit_text,
    "growth": growth_text,
}
PLOTS: dict[str, Any] = {
    "compare": compare_plots,
    "encrypted": encrypted_plots,
    "overload": overload_plots,
    "cluster": overload_plots,
    "idle": idle_plots,
    "path": path_plots,
    "kit": kit_plots,
    "growth": growth_plots,
}


def text_of(name: str, result: msgspec.Struct) -> str:
    """Return the tables of a result."""
    text: str = TEXTS[name](result)
    return text


def replaced(page: str, name: str, section: str, file: str = "benchmarks.md") -> str:
    """Return a page with another section between the markers of that name; raise BenchmarkError without markers, with
    the name of the page's file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise BenchmarkError(f"{file} needs the markers {begin} and {end} once, in that order")
    return pattern.sub(lambda _: f"{begin}\n{section}\n{end}", page)


def rewrite(measured: Path = MEASURED, published: Path = PUBLISHED, front: Path = PAGE) -> list[str]:
    """Publish what was measured, and make plots and sections from everything that is published; return its names.

    A section stands on the page that has its markers: the front page, or one in the folder of what is published. The
    front page has the answers as well.
    """
    before = {page: page.read_text() for page in [front, *sorted(published.glob("*.md"))]}
    texts = dict(before)
    results: dict[str, Any] = {}
    for name, kind in KINDS.items():
        if read(measured / f"{name}.json", kind) is not None:
            published.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(measured / f"{name}.json", published / f"{name}.json")
        result = read(published / f"{name}.json", kind)
        if result is None:
            continue
        plots: dict[str, str] = PLOTS[name](result)
        for file, drawing in plots.items():
            (published / file).write_text(drawing)
        page = next((page for page, text in texts.items() if f"<!-- {name}: begin -->" in text), front)
        folder = f"{published.name}/" if page == front else ""
        pictures = [f"![{file.removesuffix('.svg').replace('-', ' ')}]({folder}{file})" for file in plots]
        texts[page] = replaced(texts[page], name, "\n\n".join([text_of(name, result), *pictures]), page.name)
        results[name] = result
    if not results:
        raise BenchmarkError(f"nothing was measured yet: {measured} has no results, and neither has {published}")
    rows = answers(results, published.name)
    texts[front] = replaced(texts[front], "answers", table(["question", "answer"], rows), front.name)
    for page, text in texts.items():
        if text != before[page]:
            page.write_text(text)
    return list(results)
