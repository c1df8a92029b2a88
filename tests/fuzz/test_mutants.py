"""Faults that are put in, one at a time: the fuzzers find each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bester.bridge import frames, native
from bester.bridge.submissions import Submissions
from bester.bridge.window import Window
from bester.broker.core.directory import Directory
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.resume import BridgeResume
from bester.broker.wire import readers
from tests.fuzz.fuzzers import FUZZERS
from tests.fuzz.play import attempt, steps_of


def found(name: str, *seeds: int) -> str:
    """Return the failure of the first of these stories that breaks a rule; empty where none does."""
    fuzzer = FUZZERS[name]
    for seed in seeds:
        _, wrong = attempt(fuzzer.play, steps_of(seed, fuzzer.length))
        if wrong is not None:
            return wrong
    return ""


class TestFaultsAreFound:
    """A fuzzer that finds no fault that was put in would find none that was not."""

    def test_a_reader_that_trusts_what_it_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def trusting(row: Any, frames: Sequence[bytes]) -> Any:
            return len(row[2])  # the fault of this mutant

        monkeypatch.setitem(readers.READERS, 10, trusting)
        assert "Error" in found("wire", *range(4))

    def test_a_table_without_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def on_left(self: KnownTypes, types: frozenset[str], now: float) -> None:
            self._unserved.update(dict.fromkeys(types, now))

        monkeypatch.setattr(KnownTypes, "on_left", on_left)
        assert "_unserved" in found("router", *range(60))

    def test_sessions_without_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Directory, "__init__", partial_init(Directory.__init__))
        assert "directory" in found("router", *range(60))

    def test_an_exception_that_nobody_expects(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def counted(self: BridgeResume, reports: int) -> None:
            while self._counted < reports:
                self._sent_tokens.discard(self._sent.popleft().token)
                self._counted += 1

        monkeypatch.setattr(BridgeResume, "on_reports_counted", counted)
        assert "IndexError" in found("router", *range(60))

    def test_bytes_that_are_not_utf8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "is_utf8", lambda text: True)
        assert "UnicodeDecodeError" in found("frames", *range(30))

    def test_a_stream_that_is_cut_wrongly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(frames, "HEADER_BYTES", 3)
        assert found("frames", *range(10))

    def test_a_window_that_is_never_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Window, "_has_no_room", lambda self: False)
        assert "one connection wait for a report" in found("bridge", *range(30))

    def test_a_departed_message_that_is_never_counted_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Submissions, "release", lambda self, submission: None)
        assert "nothing is held that nobody waits for" in found("bridge", *range(30))


def partial_init(init: Callable[..., None]) -> Callable[..., None]:
    """Return a way to make a directory that has no bound, whatever is asked."""

    def unbounded(self: Directory, max_sessions: int = 0) -> None:
        init(self, 2**60)

    return unbounded
