"""A short chaos run, for every run of the tests; `make chaos` is the long one."""

from __future__ import annotations

import time
from pathlib import Path

from tests.chaos.__main__ import told
from tests.chaos.course import play
from tests.chaos.processes import Parts, marked, python
from tests.postgres_server import Cluster

FAULTS_S = 12.0
SEED = 11
CLUSTER_FAULTS_S, CLUSTER_SEED = 6.0, 2501
"""The cables between two hosts carry nothing; the database is killed, and later cut off from a broker, which is killed
in the end; the other server is killed, and both bridges are frozen."""
PATIENCE_S = 10.0


def test_good_messages_survive_kills() -> None:
    result = play(SEED, FAULTS_S, print)
    verdict = result.verdict
    assert verdict.clean, "\n".join(told(result))
    # A run without events would lose nothing.
    assert result.compared >= 5, "nobody sent in the calm time"
    assert result.kills >= 3 and verdict.promises >= 50 and verdict.good >= 30, "\n".join(told(result))


def test_good_messages_survive_kills_of_a_cluster(cluster: Cluster) -> None:
    """`cluster` tells whether there is a PostgreSQL: the run has one of its own, which writes to disk."""
    result = play(CLUSTER_SEED, CLUSTER_FAULTS_S, print, layout="cluster")
    verdict = result.verdict
    assert verdict.clean, "\n".join(told(result))
    assert result.kills and verdict.promises >= 30 and verdict.good >= 20, "\n".join(told(result))


def test_frozen_and_orphaned_processes_are_ended(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    with Parts() as parts:
        frozen, orphaning = parts.part("frozen", tmp_path), parts.part("orphaning", tmp_path, ready="here")
        frozen.start(*python("timeit", "-n1", "-r1", "import time; time.sleep(600)"))
        frozen.freeze()
        orphaning.start("python3", "-c", code + "print('here', flush=True); time.sleep(600)")
        deadline_s = time.monotonic() + PATIENCE_S
        while not orphaning.ready:
            assert orphaning.alive and time.monotonic() < deadline_s, orphaning.log()
        orphaning.kill()
        assert len(marked(parts.mark)) == 2
    assert marked(parts.mark) == []
    assert not frozen.alive
