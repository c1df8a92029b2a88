"""Checks of passwords leave the processor to the loop."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from bester.broker.verifying import CHECKS_PRIORITY, HASHER, LET_IN, Verifying

HASH = HASHER.hash("secret")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
async def test_thread_that_checks_a_password_yields_to_the_loop() -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    verifying = Verifying(lambda user: HASH)
    try:
        assert await verifying.verify("alice", "secret", "127.0.0.1") == LET_IN
        threads = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("password")]
        priorities = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads if thread is not None]
        assert set(priorities) == {max(own, CHECKS_PRIORITY)}
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    finally:
        verifying.close()
