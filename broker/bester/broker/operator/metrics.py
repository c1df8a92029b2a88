"""The status of a broker as Prometheus metrics. Pure: a status goes in, text comes out.

Names follow the conventions: the prefix `bester_`, base units (seconds, bytes), `_total` for what only rises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

STATES = ("up", "down", "unknown")
SAMPLES = 200
"""Samples of one piece of the text."""
HISTOGRAMS = 10
"""Histograms in one part of a metric: each has 18 samples."""
_HEAD = re.compile(rb"\A(?:#[^\n]*\n)+")
REACHED = "reached_"
"""Beginning of the figures of a bridge that count what happened at a bound."""


def pieces_of(status: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the metrics in Prometheus' text format, in pieces of some milliseconds: a server may have 2,000 types."""
    before = ""
    for metric in _Collector(status).collect():
        samples = metric.samples
        for begin in range(0, len(samples) or 1, SAMPLES):
            metric.samples = samples[begin : begin + SAMPLES]
            text = generate_latest(_Registry(metric))
            yield text if metric.name != before else _HEAD.sub(b"", text)
            before = metric.name


class _Registry(CollectorRegistry):
    """Registry of one metric, for the library to write."""

    def __init__(self, metric: Metric) -> None:
        super().__init__(auto_describe=False)
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        yield self._metric


class _Collector:
    """Makes metrics of one status."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; one of very many samples in parts, one after the other."""
        yield from self._broker()
        yield from self._parties()
        yield from self._senders()
        yield from self._queues()
        yield from self._store()
        yield from self._bounds()
        yield from self._types()
        yield from self._servers()
        yield from self._bridges()

    def _broker(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily("bester_up_seconds", "Seconds since the broker was started.", status["up_s"])
        yield GaugeMetricFamily("bester_draining", "1 while the broker ends.", int(status["draining"]))
        yield GaugeMetricFamily("bester_users", "Users with a session.", status["users"])
        yield GaugeMetricFamily("bester_sessions", "Sessions of users.", status["sessions"])
        yield GaugeMetricFamily("bester_unreported_messages", "Messages whose report is due.", status["cases"])

    def _parties(self) -> Iterator[Metric]:
        """Yield the counts of parties on the fabric, of logins and of refusals."""
        status = self._status
        yield _by_key(GaugeMetricFamily, "bester_peers", "Parties on the fabric, by role.", "role", status["peers"])
        yield _by_key(CounterMetricFamily, "bester_logins", "Logins, by result.", "result", status["logins"])
        yield CounterMetricFamily(
            "bester_lockouts", "Times that a user at an address had to wait for wrong passwords.", status["lockouts"]
        )
        refused = status["refused"]["count"]
        yield GaugeMetricFamily("bester_parties_refused", "Parties that the fabric refused within 10 minutes.", refused)

    def _senders(self) -> Iterator[Metric]:
        """Yield how much of what waits, and of what comes, is one sender's."""
        status = self._status
        full = status["full_mailboxes"]["count"]
        yield GaugeMetricFamily("bester_mailboxes_full", "Mailboxes at 90 % of their bound, or above.", full)
        most = max((row["waiting"] for row in status["busiest"]), default=0)
        yield GaugeMetricFamily("bester_waiting_of_one_sender", "Waiting messages of the sender with most.", most)
        rates = status["rates"]
        yield GaugeMetricFamily(
            "bester_messages_per_second", "Messages a second of all senders, over ten seconds.", rates["per_s"]
        )
        yield GaugeMetricFamily(
            "bester_messages_per_second_of_one_sender",
            "The same of the sender with most.",
            max((row["per_s"] for row in rates["fastest"]), default=0.0),
        )

    def _queues(self) -> Iterator[Metric]:
        queued = self._status["queued"]
        yield GaugeMetricFamily("bester_queued_messages", "Messages on disk for users and servers.", queued["messages"])
        yield GaugeMetricFamily("bester_queued_bytes", "Bytes of these messages.", queued["bytes"])
        yield GaugeMetricFamily("bester_mailboxes", "Mailboxes with messages.", queued["mailboxes"])

    def _store(self) -> Iterator[Metric]:
        """Yield the figures of the store, and the brokers that share it."""
        store = self._status["store"]
        yield CounterMetricFamily("bester_store_commits", "Commits of the store.", store["commits"])
        yield CounterMetricFamily("bester_store_adopted", "Messages taken over from other brokers.", store["adopted"])
        yield CounterMetricFamily("bester_store_commit_seconds", "Seconds in commits.", store["commit_s"])
        sync = HistogramMetricFamily("bester_store_fsync_seconds", "Time that a commit waited for the disk.")
        _add_times(sync, [], store["sync_buckets_s"], store["sync"], store["sync_s"])
        yield sync
        yield CounterMetricFamily("bester_store_failures", "Commits that failed.", store["failures"])
        if store["bytes"] is not None:
            yield GaugeMetricFamily("bester_store_bytes", "Size of the store's files.", store["bytes"])
            yield GaugeMetricFamily("bester_store_room_bytes", "Room on the store's disk.", store["room_bytes"])
        if store["log_bytes"] is not None:
            text = "Size of the store's log, which another process that reads the store lets grow."
            yield GaugeMetricFamily("bester_store_log_bytes", text, store["log_bytes"])
        living = GaugeMetricFamily(
            "bester_broker_living",
            "1 for a broker of this server that lives, 0 for one that is dead.",
            labels=["broker"],
        )
        for each in self._status["brokers"]:
            if each["state"] != "ended":
                living.add_metric([each["name"]], int(each["state"] == "lives"))
        yield living

    def _bounds(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("bester_bound_used", "How much of a bound is used.", labels=["bound"])
        bound = GaugeMetricFamily("bester_bound_limit", "The bound.", labels=["bound"])
        for name, (now, limit) in self._status["bounds"].items():
            used.add_metric([name], now)
            bound.add_metric([name], limit)
        yield used
        yield bound
        reached = self._status["reached"]
        yield _by_key(CounterMetricFamily, "bester_bound_reached", "Refused or dropped at a bound.", "bound", reached)

    def _types(self) -> Iterator[Metric]:
        types: Mapping[str, Mapping[str, Any]] = self._status["types"]
        for key, about in (
            ("received", "Messages that entered"),
            ("answered", "Replies of handlers"),
            ("reported", "Messages that entered and were reported on"),
            ("results", "Commands in replies"),
            ("again", "Requests after the first of a message"),
            ("dead", "Dead letters"),
        ):
            counts = {type_: row[key] for type_, row in types.items()}
            yield _by_key(CounterMetricFamily, f"bester_messages_{key}", f"{about}, by type.", "type", counts)
        failed = CounterMetricFamily(
            "bester_messages_failed", "Messages that failed, by type and code.", labels=["type", "code"]
        )
        for type_, row in types.items():
            for code, count in row["failed"].items():
                failed.add_metric([type_, code], count)
        yield failed
        for key, about in (
            ("waiting", "Messages that wait for a handler"),
            ("inflight", "Messages that handlers hold"),
            ("workers", "Handlers"),
        ):
            name = f"bester_messages_{key}" if key != "workers" else "bester_handlers"
            counts = {type_: row[key] for type_, row in types.items()}
            yield _by_key(GaugeMetricFamily, name, f"{about}, by type.", "type", counts)
        stuck = {type_: row["stuck"] for type_, row in types.items()}
        yield _by_key(GaugeMetricFamily, "bester_handlers_stuck", "Handlers that are stuck, by type.", "type", stuck)
        declared = dict.fromkeys(self._status["declared"], 1)
        about = "1 for a type of a declared handler."
        yield _by_key(GaugeMetricFamily, "bester_type_declared", about, "type", declared)
        for name, key, about in (
            ("bester_handler_seconds", "took", "Time of handlers over a message."),
            ("bester_message_seconds", "whole", "Time from the entry of a message to its report."),
        ):
            rows = iter(types.items())
            while some := tuple(islice(rows, HISTOGRAMS)):
                times = HistogramMetricFamily(name, about, labels=["type"])
                for type_, row in some:
                    _add_times(times, [type_], self._status["buckets_s"], row[key], row[f"{key}_s"])
                yield times

    def _servers(self) -> Iterator[Metric]:
        servers = self._status["servers"]
        state = GaugeMetricFamily("bester_server_state", "1 for the state of a server.", labels=["server", "state"])
        held = GaugeMetricFamily("bester_server_held", "1 where messages are held back.", labels=["server"])
        queued = GaugeMetricFamily("bester_server_queued_messages", "Messages queued for it.", labels=["server"])
        size = GaugeMetricFamily("bester_server_queued_bytes", "Bytes queued for it.", labels=["server"])
        oldest = GaugeMetricFamily(
            "bester_server_oldest_seconds", "Age of the oldest message queued for it.", labels=["server"]
        )
        retries = CounterMetricFamily(
            "bester_server_retries", "Times that messages for it were put off, to be sent again.", labels=["server"]
        )
        wrong = GaugeMetricFamily("bester_server_key_wrong", "1 where a key forbids the link.", labels=["server"])
        clock = GaugeMetricFamily(
            "bester_server_clock_ahead_seconds", "Seconds by which its clock is ahead.", labels=["server"]
        )
        for row in servers:
            wrong.add_metric([row["name"]], int(row["key_wrong"]))
            if row["clock_off_s"] is not None:
                clock.add_metric([row["name"]], row["clock_off_s"])
            for each in STATES:
                state.add_metric([row["name"], each], int(row["state"] == each))
            held.add_metric([row["name"]], int(row["held"]))
            queued.add_metric([row["name"]], row["queued"])
            size.add_metric([row["name"]], row["bytes"])
            oldest.add_metric([row["name"]], row["oldest_s"] or 0.0)
            retries.add_metric([row["name"]], row["retries"])
        yield from (state, held, queued, size, oldest, retries, wrong, clock)

    def _bridges(self) -> Iterator[Metric]:
        """Yield the counts that bridges tell; which there are is the bridge's matter."""
        gauges: dict[str, GaugeMetricFamily] = {}
        reached = CounterMetricFamily(
            "bester_bridge_bound_reached", "Refused, dropped or cut at a bound of a bridge.", labels=["bridge", "bound"]
        )
        for row in self._status["bridges"]:
            for name, count in row["figures"].items():
                if not name.isidentifier() or not name.isascii():
                    continue
                if name.startswith(REACHED):
                    reached.add_metric([row["name"], name.removeprefix(REACHED)], count)
                    continue
                if name not in gauges:
                    gauges[name] = GaugeMetricFamily(
                        f"bester_bridge_{name}", f"Count of a bridge: {name.replace('_', ' ')}.", labels=["bridge"]
                    )
                gauges[name].add_metric([row["name"]], count)
        yield from gauges.values()
        yield reached


def _by_key(
    kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, about: str, label: str, counts: Mapping[str, float]
) -> Metric:
    """Return a metric with one sample for each key of the counts; the key is the value of the label."""
    metric = kind(name, about, labels=[label])
    for key, count in counts.items():
        metric.add_metric([key], count)
    return metric


def _add_times(
    to: HistogramMetricFamily, labels: Sequence[str], ends: Sequence[float], counts: Sequence[int], sum_s: float
) -> None:
    """Add a histogram of the status, whose last count is that of all longer times, to a metric."""
    names = [*map(repr, ends), "+Inf"]
    to.add_metric(labels, list(zip(names, accumulate(counts), strict=True)), sum_s)
