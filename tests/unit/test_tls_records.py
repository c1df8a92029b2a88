"""Records of TLS are handed on whole, in order, and a few at a time, however their bytes come."""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bester.broker.tls_records import AT_ONCE, AT_ONCE_BYTES, MOST_USELESS_BYTES, Records

lengths = st.lists(st.integers(0, 40) | st.sampled_from([255, 256, 16384]), max_size=30)


def record(length: int) -> bytes:
    """Return a record of so many bytes beside its header."""
    return b"\x17\x03\x03" + struct.pack(">H", length) + b"x" * length


@given(lengths, st.lists(st.integers(0, 10_000), max_size=20))
def test_records_are_the_same_in_any_pieces(sizes: list[int], cuts: list[int]) -> None:
    whole = b"".join(map(record, sizes))
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    records, taken = Records(), b""
    for first, last in pairwise(places):
        records.add(whole[first:last])
        while piece := records.take():
            taken += piece
    assert taken == whole
    assert records.whole == len(sizes)


def test_few_records_are_taken_at_once() -> None:
    records = Records()
    records.add(record(18) * 20 + record(300)[:100])
    assert [len(records.take()) // len(record(18)) for _ in range(2)] == [AT_ONCE, AT_ONCE]
    assert records.whole == 2 * AT_ONCE
    assert records.take() == record(18) * (20 - 2 * AT_ONCE) + record(300)[:100]
    assert records.take() == b""
    records.add(record(300)[100:])
    assert records.take() == record(300)[100:]
    assert records.whole == 21


def test_long_records_are_taken_one_at_a_time() -> None:
    records = Records()
    records.add(record(AT_ONCE_BYTES) * 3 + record(AT_ONCE_BYTES // 2) * 3)
    assert [len(records.take()) // len(record(AT_ONCE_BYTES // 2)) for _ in range(5)] == [1, 1, 1, 2, 1]
    assert records.whole == 6


def test_too_much_without_data_is_a_fault() -> None:
    records = Records()
    for _ in range(2):
        records.add(record(AT_ONCE_BYTES) * 5)
        while records.fault() is None and records.take():
            pass
        assert records.fault() == f"it sends more than {MOST_USELESS_BYTES >> 10} KiB of TLS in a row without data"
        records.on_data()
        assert records.fault() is None
        records.take()
        records.on_data()


def test_header_that_is_not_whole_waits() -> None:
    records = Records()
    records.add(record(1)[:4])
    assert records.take() == b""
    records.add(record(1)[4:])
    assert records.take() == record(1)
