"""Bytes that have left a connection, and confirmations of deliveries."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.confirmations import MAX_ROWS, UNCONFIRMED, Confirmations, Delivery
from bester.bridge.outqueue import OutQueue
from bester.broker.wire.messages import Confirm


class TestOutQueue:
    def test_frames_leave_joined_and_marks_come_back_when_sent(self) -> None:
        queue: OutQueue[str] = OutQueue()
        queue.push(b"ab")
        queue.mark("first")
        queue.push(b"cd")
        assert queue.take(100) == b"abcd"
        assert queue.in_flight is True
        queue.push(b"ef")
        queue.mark("second")
        assert queue.take(100) == b""  # a single chunk at a time
        assert [mark.what for mark in queue.on_sent()] == [["first"]]
        assert queue.queued_bytes == 2
        assert queue.take(100) == b"ef"
        assert [mark.what for mark in queue.on_sent()] == [["second"]]
        assert queue.queued_bytes == 0

    def test_drop_returns_the_marks_not_passed(self) -> None:
        queue: OutQueue[int] = OutQueue()
        for number in range(4):
            queue.push(b"1234")
            queue.mark(number)
        assert queue.take(8) == b"12341234"
        assert [mark.what for mark in queue.on_sent()] == [[0], [1]]
        queue.take(8)
        assert [mark.what for mark in queue.drop()] == [[2], [3]]
        assert queue.take(8) == b""
        assert queue.queued_bytes == 0

    @given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(0, 40))
    def test_all_bytes_leave_in_order_in_bounded_chunks(self, sizes: list[int], chunk_bytes: int, late: int) -> None:
        queue: OutQueue[int] = OutQueue()
        frames = [bytes([number]) * size for number, size in enumerate(sizes)]
        passed: list[int] = []
        sent = b""

        def drain(once: bool) -> None:
            nonlocal sent
            while chunk := queue.take(chunk_bytes):
                assert len(chunk) <= chunk_bytes or len(set(chunk)) == 1
                sent += chunk
                for mark in queue.on_sent():
                    assert mark.end <= len(sent)
                    passed.extend(mark.what)
                if once:
                    return

        for number, content in enumerate(frames):
            queue.push(content)
            queue.mark(number)
            if number == late:
                drain(once=True)
        drain(once=False)
        assert sent == b"".join(frames)
        assert passed == list(range(len(frames)))


class TestDelivery:
    def test_target_succeeds_on_the_first_of_its_sessions(self) -> None:
        delivery = Confirmations().begin(1, None, None)
        delivery.expect(0, 2)
        assert not delivery.release()
        assert not delivery.on_missed(0, "not-connected")
        assert delivery.on_sent(0)
        assert delivery.failed == []

    def test_target_fails_on_the_last_of_its_sessions(self) -> None:
        delivery = Confirmations().begin(4, None, None)
        delivery.expect(2, 2)
        delivery.release()
        assert not delivery.on_missed(2, "not-connected")
        assert delivery.on_missed(2, "overloaded")
        assert delivery.failed == [[4, 2, "overloaded"]]

    def test_one_session_that_may_have_the_frame_makes_the_target_unconfirmed(self) -> None:
        delivery = Confirmations().begin(4, None, None)
        delivery.expect(2, 2)
        delivery.release()
        assert not delivery.on_missed(2, UNCONFIRMED)
        assert delivery.on_missed(2, "not-connected")
        assert delivery.failed == [[4, 2, UNCONFIRMED]]

    def test_events_after_the_first_success_change_nothing(self) -> None:
        delivery = Confirmations().begin(4, None, None)
        delivery.expect(0, 3)
        delivery.expect(1, 1)
        delivery.release()
        assert not delivery.on_sent(0)
        assert not delivery.on_sent(0)
        assert not delivery.on_missed(0, "not-connected")
        assert delivery.on_sent(1)

    def test_delivery_does_not_end_while_targets_are_added(self) -> None:
        delivery = Confirmations().begin(1, None, None)
        delivery.expect(0, 1)
        assert not delivery.on_sent(0)
        assert delivery.release()


class TestConfirmations:
    def test_one_confirmation_for_all(self) -> None:
        ledger = Confirmations()
        assert ledger.confirm() == []
        for serial in (1, 2, 3):
            ledger.at_once((serial,))
        assert ledger.confirm() == [Confirm(3, [], [])]
        assert ledger.confirm() == []

    def test_delivery_under_way_does_not_block_the_others(self) -> None:
        ledger = Confirmations()
        slow = ledger.begin(1, None, None)
        ledger.at_once((2,))
        quick = ledger.begin(3, None, None)
        quick.fail(0, "not-connected")
        ledger.end(quick)
        assert ledger.confirm() == [Confirm(0, [2, 3], [[3, 0, "not-connected"]])]
        ledger.end(slow)
        ledger.end(slow)
        assert ledger.confirm() == [Confirm(3, [], [])]
        assert ledger.waiting == 0

    def test_failures_of_a_crowd_are_confirmed_in_pieces(self) -> None:
        ledger = Confirmations()
        rows = MAX_ROWS // 2 + 1
        for serial in (1, 2, 3):
            delivery = ledger.begin(serial, None, None)
            for target in range(rows):
                delivery.fail(target, "not-connected")
            ledger.end(delivery)
        confirms = ledger.confirm()
        assert [(confirm.upto, confirm.done) for confirm in confirms] == [(0, [1]), (0, [2]), (3, [])]
        assert all(len(confirm.failed) <= MAX_ROWS for confirm in confirms)
        assert sum(len(confirm.failed) for confirm in confirms) == 3 * rows

    def test_many_small_failures_cost_linear_time(self) -> None:
        ledger = Confirmations()
        deliveries = [ledger.begin(serial, None, None) for serial in range(1, MAX_ROWS + 1)]
        for delivery in deliveries:
            delivery.fail(0, "not-connected")
            ledger.end(delivery)
        start_s = time.process_time()
        (confirm,) = ledger.confirm()
        assert (
            time.process_time() - start_s < 2.0
        )  # some hundredths; half a minute where each row is added to a new list
        assert len(confirm.failed) == MAX_ROWS
        assert all(len(delivery.failed) == 1 for delivery in deliveries)

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
    def test_every_delivery_is_confirmed_when_ended_and_not_before(self, kinds: list[int], data: st.DataObject) -> None:
        ledger = Confirmations()
        going: list[Delivery] = []
        ended: set[int] = set()
        known: set[int] = set()
        failures: list[list[object]] = []

        def look() -> None:
            for confirm in ledger.confirm():
                failures.extend(confirm.failed)
                known.update(range(1, confirm.upto + 1), confirm.done)
            assert known == ended

        for serial, kind in enumerate(kinds, 1):
            if kind == 0:
                ledger.at_once((serial,))
                ended.add(serial)
            else:
                going.append(ledger.begin(serial, None, None))
            if kind == 2:
                finished = going.pop(data.draw(st.integers(0, len(going) - 1)))
                finished.fail(0, "not-connected")
                ledger.end(finished)
                ended.add(finished.serial)
            if data.draw(st.booleans()):
                look()
        for delivery in going:
            ledger.end(delivery)
            ended.add(delivery.serial)
        look()
        assert len(failures) == kinds.count(2)
