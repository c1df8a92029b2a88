"""Client for programs without an event loop: the asyncio client, on a loop in a thread of its own.

    with Client("127.0.0.1:2223", user="bob", password="...") as client:
        report = client.send("chat", {"to": "alice", "text": "hello"})
        message = client.receive(timeout_s=5)

A thread rather than plain blocking sockets: pings are answered, reports are received and a lost connection is made anew
while the program is busy elsewhere; and there is one state machine to trust, not two. Each call costs a change of
threads, some tens of microseconds: for many thousand messages a second use `bester.client`.

The methods may be called from several threads; where several threads receive and acknowledge, use `manual_ack=True`.
Later outcomes of messages sent with `outcome=True` are received like any message, as its `Message.outcome`.

A client belongs to the process that started it: in a fork of that process its methods raise RuntimeError, and `close`
does nothing.

The client's thread never runs code of the caller.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bester import client as asynchronous
from bester.broker.wire.arguments import check_wait
from bester.client import (
    CLOSE_S,
    ClientClosed,
    ClientError,
    Limits,
    Message,
    MessageTooLarge,
    Outcome,
    Report,
)

T = TypeVar("T")

__all__ = ["Client", "ClientClosed", "ClientError", "Limits", "Message", "MessageTooLarge", "Outcome", "Report"]


class Client:
    """Connection of one user to one server. Arguments, promises and errors are those of the asyncio client."""

    def __init__(
        self,
        address: str,
        *,
        user: str,
        password: str,
        ca: Path | str | None = None,
        resend: bool = True,
        ack: bool = False,
        manual_ack: bool = False,
        give_up_s: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._client = asynchronous.Client(
            address,
            user=user,
            password=password,
            ca=ca,
            resend=resend,
            ack=ack,
            manual_ack=manual_ack,
            give_up_s=give_up_s,
            limits=Limits() if limits is None else limits,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._process = os.getpid()
        self._gate = threading.Lock()  # held to hand work to the loop, so that none comes after the loop's stop
        self._thread = threading.Thread(target=self._serve, name=f"bester client of {address}", daemon=True)
        self._serving = threading.Event()

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(CLOSE_S if kind is None else 0)

    def start(self) -> None:
        """Connect and log in; `with` does it. Raises ConnectFailed, AuthenticationFailed, ServerRefused."""
        if self._thread.ident is not None:
            raise RuntimeError("a client is started once; make a new one")
        self._process = os.getpid()
        self._thread.start()
        atexit.register(self._warn_unclosed)
        self._serving.wait()
        self._open = True
        try:
            self._do(self._client.start)
        except BaseException:
            self.close(0)
            raise

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for unreported messages, at most `timeout_s`, hang up, and end the thread.

        A program that ends without it loses what was not sent; Python warns (ResourceWarning).

        0: do not wait, and acknowledge nothing, as after an error.
        """
        if not self._open or self._process != os.getpid():
            return
        self._check_thread()
        try:
            self._do(lambda: self._client.close(timeout_s))
        finally:
            self._stop()
            self._thread.join()

    def submit(
        self,
        type_: str,
        data: Any = None,
        *,
        raw: bytes | str | None = None,
        dedup: str | None = None,
        ttl_s: float | None = None,
        outcome: bool = False,
    ) -> concurrent.futures.Future[Report]:
        """Send a message, after waiting for room in the window; return its report to be waited for.

        Arguments and errors as with the asyncio client's `submit`, and so is cancelling. Callbacks of the report run in
        the client's thread, where the client's methods raise RuntimeError.
        """
        report: concurrent.futures.Future[Report] = concurrent.futures.Future()

        async def submit() -> None:
            await self._client.room()
            submitted = self._client.submit(type_, data, raw=raw, dedup=dedup, ttl_s=ttl_s, outcome=outcome)
            submitted.add_done_callback(lambda done: _copy(done, report))
            report.add_done_callback(lambda done: self._withdraw(submitted) if done.cancelled() else None)

        self._do(submit)
        return report

    def _withdraw(self, submitted: asyncio.Future[Report]) -> None:
        """Cancel a message's report in the client's own thread; with a client that is closed, it has ended."""
        with self._gate:
            if self._open and self._loop is not None and self._process == os.getpid():
                self._loop.call_soon_threadsafe(submitted.cancel)

    def send(
        self,
        type_: str,
        data: Any = None,
        *,
        raw: bytes | str | None = None,
        dedup: str | None = None,
        ttl_s: float | None = None,
        outcome: bool = False,
        timeout_s: float | None = None,
    ) -> Report:
        """Send a message and wait for its report; after a TimeoutError (`timeout_s`) the message may still arrive."""
        client = self._client
        return self._do(lambda: client.send(type_, data, raw=raw, dedup=dedup, ttl_s=ttl_s, outcome=outcome), timeout_s)

    def receive(self, timeout_s: float | None = None) -> Message:
        """Return the next message. Raises TimeoutError after `timeout_s`, and the error that ended the client."""
        return self._do(self._client.receive, timeout_s)

    def ack(self, message: Message) -> None:
        """Acknowledge a message; a second call does no harm."""
        self._do(lambda: self._client.ack(message))

    def outcome(self, message: str, timeout_s: float | None = None) -> dict[str, str] | None:
        """Return the outcomes of a message up to now; None where the server does not know this user's message."""
        return self._do(lambda: self._client.outcome(message), timeout_s)

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server accepts, envelope included; None without a limit."""
        return self._client.max_frame

    def ping(self, timeout_s: float | None = None) -> float:
        """Return the seconds that the server took to answer."""
        return self._do(self._client.ping, timeout_s)

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages as they arrive, until the client is closed."""
        while True:
            try:
                yield self.receive()
            except ClientClosed:
                return

    def _do(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None) -> T:
        if timeout_s is not None:
            check_wait("timeout_s", timeout_s)

        async def within() -> T:
            async with asyncio.timeout(timeout_s):
                return await work()

        if self._process != os.getpid():  # a fork has no thread of the client, and waits for ever
            raise RuntimeError(
                "the client belongs to the process that started it, of which this one is a fork: make another"
            )
        self._check_thread()
        with self._gate:
            if not self._open or self._loop is None:
                raise ClientClosed("not-connected", "the client is not open: use it inside `with`")
            waiting = asyncio.run_coroutine_threadsafe(within(), self._loop)
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("not-connected", "the client was closed meanwhile") from None
        except BaseException:
            waiting.cancel()  # the caller was interrupted: its call is dropped
            raise

    def _check_thread(self) -> None:
        """Raise RuntimeError in the client's own thread, which would wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of a report runs in the client's thread: call the client from another one")

    def _stop(self) -> None:
        with self._gate:
            if self._open and self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._open = False
        atexit.unregister(self._warn_unclosed)

    def _warn_unclosed(self) -> None:
        if self._process == os.getpid():  # the program may have failed: a close would acknowledge what it holds
            client = self._client
            text = f"the client of {client.address} was never closed; messages without a report: {client.unreported}"
            warnings.warn(text, ResourceWarning, stacklevel=1, source=self)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(self._serving.set)
            self._loop.run_forever()


def _copy(done: asyncio.Future[Report], report: concurrent.futures.Future[Report]) -> None:
    """Pass a message's report on to whoever waits in another thread, unless that one has cancelled."""
    if not report.set_running_or_notify_cancel():
        return
    error = ClientClosed("not-connected", "the client was closed") if done.cancelled() else done.exception()
    if error is not None:
        report.set_exception(error)
    else:
        report.set_result(done.result())
