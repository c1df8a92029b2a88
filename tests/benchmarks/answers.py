"""The front page of the benchmarks: each question with its answer in a sentence, from the published results. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tests.benchmarks import encrypted
from tests.benchmarks.figures import ratio_of, spread
from tests.benchmarks.results import Compared, Comparison, Growth, Idle, Kit, Overload, PathCost

BESTER = "bester up"


class Question(NamedTuple):
    """A question, the page about it, and the function that answers from the result of that name; None where the result
    lacks what is asked for."""

    text: str
    page: str
    result: str
    answer: Callable[[Any], str | None]


def _find(sides: Iterable[Compared], name: str, *, closed: bool) -> Compared | None:
    """Return a side's figures in the first job of a kind."""
    jobs = (
        side for side in sides if side.side == name and (side.job["connections"] * side.job["depth"] == 1) is closed
    )
    return next(jobs, None)


def _speed(result: Comparison) -> str | None:
    loaded = _find(result.sides, BESTER, closed=False)
    if loaded is None or not loaded.against:
        return None
    times = [f"{ratio[0]:.2f} × that of {peer}" for peer, ratio in loaded.against.items()]
    return f"{loaded.median_rate:,.0f} round trips a second: {', '.join(times)}"


def _latency(result: Comparison) -> str | None:
    alone = _find(result.sides, BESTER, closed=True)
    if alone is None or not alone.against:
        return None
    times = [f"{ratio[0]:.2f} × that of {peer}" for peer, ratio in alone.against.items()]
    return f"a median of {alone.median_p50_us:,.0f} µs: {', '.join(times)}"


def _overload(result: Overload) -> str:
    kept = min((cell.kept for cell in result.cells if cell.kept is not None), default=1.0)
    worst = max((cell.honest.worst_us for cell in result.cells), default=0.0)
    load = max((cell.load for cell in result.cells), default=1)
    return (
        f"it keeps {kept:.0%} and more of its peak, up to {load} times that; the longest wait of an honest user is "
        f"{worst / 1000:,.0f} ms"
    )


def _killed(result: Overload) -> str:
    lost = sum(cell.flood.lost + cell.honest.unanswered for cell in result.cells)
    return f"{lost or 'nothing'} lost; {_overload(result)}"


def _path(result: PathCost) -> str | None:
    if not result.batches:
        return None
    costs = ", ".join(f"{each.whole_us:.1f} µs in batches of {each.batch}" for each in result.batches)
    floor = f"; the floor's {result.floor[0].whole_us:.1f} µs" if result.floor else ""
    return f"bridge and broker spend {costs}{floor}"


def _kit(result: Kit) -> str:
    loop, kit = result.handlers[0], result.handlers[1]
    ratio, *_ = ratio_of(kit.rates, loop.rates)
    return f"{spread(kit.cpu_us).median:.1f} µs a message, {ratio:.2f} × the rate of a loop by hand"


def _encryption(result: Comparison) -> str | None:
    said = []
    for side, name in ((encrypted.TLS, "clients by TLS"), (encrypted.CURVE, "handler by CURVE")):
        loaded, alone = (_find(result.sides, side, closed=closed) for closed in (False, True))
        if loaded is None or alone is None:
            return None
        (rate, *_), (latency, *_) = (next(iter(each.against.values())) for each in (loaded, alone))
        said.append(f"{name}: {rate:.2f} × the rate, {latency:.2f} × the latency of one message alone")
    return "; ".join(said)


def _growth(result: Growth) -> str | None:
    flat = {name: points for name, points in result.series.items() if "target" not in name}
    if not flat:
        return None
    most = max(point.cpu_us / points[0].cpu_us for points in flat.values() for point in points)
    sizes = [f"{points[-1].size:,} {name}" for name, points in flat.items()]
    return f"at most {most:.2f} × the CPU a message beside {', '.join(sizes)}"


def _brokers(result: Growth) -> str | None:
    alone = [each for each in result.layouts if each.servers == 1]
    one, two = ([each for each in alone if each.brokers == count] for count in (1, 2))
    loads = {(each.connections, each.depth): each.cpu_us() for each in one}
    times = [
        f"{each.cpu_us() / loads[load]:.2f} × with {each.depth} in flight"
        for each in two
        if (load := (each.connections, each.depth)) in loads
    ]
    return f"under the same load of each bridge a message costs {', '.join(times)}" if times else None


def _idle(result: Idle) -> str | None:
    found = [cell for cell in result.cells if cell.client_bytes is not None]
    if not found:
        return None
    last = found[-1]
    return f"{(last.client_bytes or 0) / 1024:.1f} KiB each, of {last.clients:,}"


QUESTIONS = (
    Question("How fast is a loaded server?", "comparison.md", "compare", _speed),
    Question("How long does one message alone take?", "comparison.md", "compare", _latency),
    Question("What does more load than it can do?", "overload.md", "overload", _overload),
    Question("And a broker that is killed in the middle?", "broker-killed.md", "cluster", _killed),
    Question("What does a message cost?", "message.md", "path", _path),
    Question("What does it cost a handler in Python?", "message.md#the-kit-and-contracts", "kit", _kit),
    Question("What does encryption cost?", "encryption.md", "encrypted", _encryption),
    Question("Does a message cost more beside more of everything?", "growth.md", "growth", _growth),
    Question("And on two brokers with two bridges, in place of one each?", "growth.md", "growth", _brokers),
    Question("What does an idle client cost?", "growth.md#idle-clients", "idle", _idle),
)


def answers(results: Mapping[str, Any], folder: str) -> list[list[str]]:
    """Return question and answer of all that these results answer; the pages are in a folder beside the front page."""
    rows = []
    for question in QUESTIONS:
        answer = question.answer(results[question.result]) if question.result in results else None
        if answer is not None:
            rows.append([f"[{question.text}]({folder}/{question.page})", answer])
    return rows
