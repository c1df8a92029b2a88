"""The thread beside the loop runs the store's work in order, and ends."""

from __future__ import annotations

import threading

from bester.broker.store_thread import StoreThread


def test_work_is_done_in_order_on_one_thread_which_ends() -> None:
    done = threading.Semaphore(0)
    story: list[tuple[int, threading.Thread]] = []
    thread = StoreThread(done.release)

    def work(number: int) -> None:
        story.append((number, threading.current_thread()))

    for number in range(3):
        thread.run(lambda number=number: work(number))  # type: ignore[misc]  # mypy takes no default in a lambda
    for _ in range(3):
        assert done.acquire(timeout=30.0)
    assert [number for number, _ in story] == [0, 1, 2]
    (used,) = {each for _, each in story}
    assert used is not threading.current_thread()
    thread.close()
    used.join(30.0)
    assert not used.is_alive()


def test_thread_that_was_never_needed_ends_without_having_begun() -> None:
    before = threading.active_count()
    StoreThread(lambda: None).close()
    assert threading.active_count() == before
