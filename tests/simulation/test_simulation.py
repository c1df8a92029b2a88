"""A short form of the simulation, for every run of the tests; `make simulate SEEDS=20000` is the long one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bester.broker import store_driver
from tests.simulation import cluster, scenario
from tests.simulation.__main__ import CLUSTER, SHARED, play_all
from tests.simulation.scenario import Scenario, play, submissions_of

SEEDS = 500
GROUPS = 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_rules_hold_under_all_faults(group: int) -> None:
    part = SEEDS // GROUPS
    assert not play_all(range(group * part, (group + 1) * part), jobs=1).broken


def test_a_quiet_seed_and_a_wild_one_differ_but_both_end() -> None:
    reports = [report for seed in range(8) for one in submissions_of(play(seed)) for report in one.reports]
    assert {report.good for report in reports} == {True, False}
    assert len({report.reason for report in reports}) > 4
    assert {"delivered", "queued", "sent"} <= {outcome for report in reports for outcome in report.recipients.values()}


def digest(seed: int) -> str:
    from tests.simulation.scenario import Scenario

    scenario = Scenario(seed)
    scenario.run()
    return hashlib.sha256(scenario.world.told().encode()).hexdigest()


def test_the_same_seed_is_the_same_story_in_any_process() -> None:
    code = "from tests.simulation.test_simulation import digest; print(digest(3))"
    stories = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]  # fmt: skip
    assert stories == [digest(3)] * 2


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_rules_hold_for_two_brokers_of_one_server(first: int) -> None:
    assert not play_all(range(first, first + 10), jobs=1, kind=CLUSTER).broken


def test_no_message_pays_for_one_that_kills_a_handler_of_two_brokers() -> None:
    assert not play_all(range(20), jobs=1, kind=SHARED).broken


def test_two_brokers_meet_every_fate_of_a_message() -> None:
    seeds = range(30, 60)
    reports = [report for seed in seeds for one in submissions_of(play(seed, CLUSTER)) for report in one.reports]
    assert {"delivered", "queued", "failed:storage-unavailable"} <= {
        outcome for report in reports for outcome in report.recipients.values()
    }
    assert {"storage-unavailable", "timeout", "unreachable"} <= {report.reason for report in reports}


@pytest.mark.parametrize("seed", [1509, 2808, 3105])
def test_rules_hold_where_a_lease_ends_while_marks_wait_for_a_locked_store(seed: int) -> None:
    """Another broker adopts what is written, not the marks and outcomes that wait in memory."""
    play(seed, CLUSTER)


def test_later_outcomes_of_a_message_that_two_brokers_have_sent_are_counted_together() -> None:
    """Its first report was lost, and the other server sends one outcome to each of the brokers."""
    play(19294, CLUSTER)


@pytest.mark.parametrize("seed", range(30, 45))
def test_promises_hold_with_very_little_credit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bridges of a server have 8 messages together, and a type is stuck soon; HEARTBEATs are lost as well."""
    tight = replace(scenario.LIMITS, max_waiting=16, stuck_waiting=1, stuck_waiting_s=0.4)
    monkeypatch.setattr(scenario, "LIMITS", tight)
    play(seed)


@pytest.mark.parametrize("kind", [Scenario, CLUSTER])
def test_rules_hold_where_mailboxes_wait_in_line_and_reads_in_parts(
    kind: type[Scenario], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "LIMITS", replace(scenario.LIMITS, inflight_bytes=500))
    monkeypatch.setattr(cluster, "CLUSTER_LIMITS", replace(cluster.CLUSTER_LIMITS, inflight_bytes=500))
    for bound in ("READ_BYTES", "REMOTE_READ_BYTES", "READ_AT_ONCE"):
        monkeypatch.setattr(store_driver, bound, 1)
    assert not play_all(range(60, 75), jobs=1, kind=kind).broken
