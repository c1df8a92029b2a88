"""Changes to a Python process of a test, made before its program begins: a wall clock that can be set, and breakages.

Python runs this file at its start where this directory is on PYTHONPATH; the processes that it starts inherit that. It
does nothing unless one of two variables says so:

BESTER_TEST_CLOCK names a file that holds how many seconds the wall clock is ahead of the machine's. The file is read at
every look at the clock, so a new number in it is a clock that was set at that moment. What shows that clock is all that
Python reads as the time of day: `time.time` and `time_ns`, `time.clock_gettime` and `clock_gettime_ns` of
CLOCK_REALTIME, `time.localtime`, `gmtime`, `ctime`, `asctime` and `strftime` without a time, and `now`, `utcnow` and
`today` of `datetime`. Log records are dated by `time.time`. The monotonic clocks, sleeps and timeouts go on as they do
when a real clock is set. Not covered is what C code reads by itself: the dates of files, and 'now' in SQL.

BESTER_TEST_IMPORTS names functions (MODULE:FUNCTION, separated by commas) that are called first of all.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Self

BILLION = 1_000_000_000


def _set_clock(file: str) -> None:
    """Replace the functions of `time` and the classes of `datetime` that tell the time of day."""
    real_ns, gettime, gettime_ns = time.time_ns, time.clock_gettime, time.clock_gettime_ns
    last = 0

    def ahead_ns() -> int:
        nonlocal last
        try:
            with open(file, "rb") as text:
                last = int(float(text.read()) * BILLION)
        except OSError:  # the test has ended, and with it the file: the clock stays as it is
            pass
        return last

    def time_ns() -> int:
        return real_ns() + ahead_ns()

    def now_s() -> float:
        return time_ns() / BILLION

    def clock_gettime(clock: int) -> float:
        return gettime(clock) if clock != time.CLOCK_REALTIME else now_s()

    def clock_gettime_ns(clock: int) -> int:
        return gettime_ns(clock) if clock != time.CLOCK_REALTIME else time_ns()

    for function in (now_s, time_ns, clock_gettime, clock_gettime_ns):
        setattr(time, function.__name__.replace("now_s", "time"), _Plain(function))
    for name in ("localtime", "gmtime", "ctime"):
        setattr(time, name, _Plain(_with_now(getattr(time, name), now_s)))
    for name, place in (("asctime", 0), ("strftime", 1)):
        setattr(time, name, _Plain(_with_local_now(getattr(time, name), place)))
    _set_calendar(now_s)


class _Plain:
    """A function that is no method where a class has it as an attribute, like those of C: `logging` has one so."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__call = function

    def __call__(self, *given: Any) -> Any:
        return self.__call(*given)


def _with_now(function: Callable[[float], Any], now_s: Callable[[], float]) -> Callable[..., Any]:
    """Return a function of seconds that takes now where no seconds are given."""
    return lambda seconds=None: function(now_s() if seconds is None else seconds)


def _with_local_now(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    """Return a function whose argument at `place`, a broken-down time, is now where it is not given."""
    return lambda *given: function(*given) if len(given) > place else function(*given, time.localtime())


class _Like(type):
    """Takes for its own what is of the class that it stands for: what C code makes is of that one."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1])


def _set_calendar(now_s: Callable[[], float]) -> None:
    class Date(datetime.date, metaclass=_Like):
        __slots__ = ()  # as large as the real one: C code looks at that

        @classmethod
        def today(cls) -> Self:
            return cls.fromtimestamp(now_s())

    class Datetime(datetime.datetime, metaclass=_Like):
        __slots__ = ()

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            return cls.fromtimestamp(now_s(), tz)

        @classmethod
        def today(cls) -> Self:
            return cls.fromtimestamp(now_s())

        @classmethod
        def utcnow(cls) -> Self:
            return cls.fromtimestamp(now_s(), datetime.UTC).replace(tzinfo=None)

    module: Any = datetime
    module.date, module.datetime = Date, Datetime


if "BESTER_TEST_CLOCK" in os.environ:
    _set_clock(os.environ["BESTER_TEST_CLOCK"])
for called in filter(None, os.environ.get("BESTER_TEST_IMPORTS", "").split(",")):
    module_, _, function_ = called.partition(":")
    try:
        getattr(import_module(module_), function_)()
    except ImportError as error:  # pip and the like, whose Python has none of our modules
        print(f"{called} is not called: {error}", file=sys.stderr)
