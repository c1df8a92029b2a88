"""A log without a reader, or without room, blocks no program; missing lines are counted in their place."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from select import PIPE_BUF

import pytest

from bester.broker.log_writer import LIMIT_BYTES, NOT_READ, LogWriter

DEADLINE_S = 20.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)


def writer_to(descriptor: int) -> LogWriter:
    return LogWriter(descriptor, "utf-8", lost=lambda count, why: f"{count} lost: {why}")


def everything(read: int, write: int, writer: LogWriter) -> list[str]:
    """Read until all is written and the pipe is closed; the writer's thread then waits for more, and ends with the
    process."""
    got = b""
    while not writer.flush(0.01):
        got += os.read(read, 65536)
    os.close(write)
    while data := os.read(read, 65536):
        got += data
    return got.decode().splitlines()


def test_lines_are_written_in_order(pipe: tuple[int, int]) -> None:
    read, write = pipe
    writer = writer_to(write)
    for number in range(1000):
        writer.put(f"{number} ☃ \udcff")
    assert everything(read, write, writer) == [f"{number} ☃ \\udcff" for number in range(1000)]


def test_stopped_reader_costs_a_bounded_number_of_lines(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:  # the reader has stopped
            os.write(write, b"-" * 4095 + b"\n")
    os.set_blocking(write, True)
    writer = writer_to(write)
    line, count = "x" * 992, 3 * LIMIT_BYTES // 1000
    for number in range(count):
        writer.put(f"{number:06} {line}")
    writer.put("the last before somebody reads again")
    assert not writer.flush(0)
    lines = [each for each in everything(read, write, writer) if each[0] != "-"]
    kept = [each for each in lines if not each.endswith(" lost: the reader had stopped")]
    assert [each[:6] for each in lines[: len(kept)]] == [f"{number:06}" for number in range(len(kept))]
    assert LIMIT_BYTES - 2000 < sum(len(each) + 1 for each in kept) <= LIMIT_BYTES
    # Behind them, in the place of the missing lines: one count, or two if lines were dropped after the first was
    # written.
    assert sum(int(each.partition(" ")[0]) for each in lines[len(kept) :]) == count + 1 - len(kept)


def test_count_of_lost_lines_comes_first_when_the_disk_has_room(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    full = True

    def refuse(descriptor: int, data: memoryview) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os_write(descriptor, data)

    os_write = os.write
    monkeypatch.setattr("bester.broker.log_writer.os.write", refuse)
    writer = writer_to(write)
    for text in ("one", "two"):
        writer.put(text)
        assert writer.flush(DEADLINE_S)
    full = False
    writer.put("three")
    assert everything(read, write, writer) == ["2 lost: No space left on device", "three"]


def test_torn_line_does_not_run_into_the_next(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = pipe
    os_write, room = os.write, [4, 0]

    def some(descriptor: int, data: memoryview) -> int:
        if not room:
            return os_write(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        return os_write(descriptor, data[: room.pop(0)])

    monkeypatch.setattr("bester.broker.log_writer.os.write", some)
    writer = writer_to(write)
    writer.put("torn apart")
    assert writer.flush(DEADLINE_S)
    room.clear()
    writer.put("whole")
    lines = everything(read, write, writer)
    assert (lines[0], lines[1:]) == ("torn", ["1 lost: full", "whole"])


def test_non_blocking_descriptor_is_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    writer = writer_to(write)
    for _ in range(200):
        writer.put("y" * 999)
    assert everything(read, write, writer) == ["y" * 999] * 200


def test_reader_that_has_gone_does_no_harm() -> None:
    read, write = os.pipe()
    os.close(read)
    writer = writer_to(write)
    for _ in range(3):
        writer.put("to nobody")
        assert writer.flush(DEADLINE_S)
    os.close(write)


# --- where the system has no thread -----------------------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", start)
        yield context


def test_without_a_thread_lines_are_written_all_the_same(pipe: tuple[int, int], no_threads: pytest.MonkeyPatch) -> None:
    read, write = pipe
    writer = writer_to(write)
    long = "x" * 3 * PIPE_BUF
    for line in ("one", long, "two"):
        writer.put(line)
    assert os.read(read, 65536).decode().splitlines() == ["one", long, "two"]
    no_threads.undo()
    writer.put("three")
    assert everything(read, write, writer) == ["three"]


def test_without_a_thread_a_stopped_reader_blocks_no_writer(
    pipe: tuple[int, int], no_threads: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    writer = writer_to(write)
    line, count = "x" * 9992, 3 * LIMIT_BYTES // 10_000
    for number in range(count):
        writer.put(f"{number:06} {line}")
    assert not writer.flush(0)
    *kept, lost = everything(read, write, writer)
    assert [each[:6] for each in kept] == [f"{number:06}" for number in range(len(kept))]
    assert {len(each) for each in kept} == {len(line) + 7}
    assert lost == f"{count - len(kept)} lost: {NOT_READ}"


def test_without_a_thread_unwritable_lines_are_counted(
    pipe: tuple[int, int], no_threads: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    room = 1

    def refuse(descriptor: int, data: memoryview) -> int:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os_write(descriptor, data)

    os_write = os.write
    monkeypatch.setattr("bester.broker.log_writer.os.write", refuse)
    writer = writer_to(write)
    writer.put("x" * (PIPE_BUF + 1))  # no room for the second part
    writer.put("waits")
    room = 100
    writer.put("room again")
    assert everything(read, write, writer) == ["x" * PIPE_BUF, "1 lost: No space left on device", "waits", "room again"]
