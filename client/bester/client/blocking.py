"""A client for programs without an event loop: the same client, on a loop in a thread of its own.

    with Client("127.0.0.1:2223", user="bob", password="...") as client:
        report = client.send("chat", {"to": "alice", "text": "hello"})
        message = client.receive(timeout_s=5)

A thread rather than plain blocking sockets: pings are answered, reports come in, and a lost connection is made anew
while the program is busy with something else; and there is one machine to trust, not two. Each call costs a change of
threads, some tens of microseconds: for many thousand messages a second use `bester.client`.

Its methods may be called from several threads; where several receive and acknowledge, they want `manual_ack=True`. What
is told later of messages sent with `outcome=True` is received like any message, and is its `Message.outcome`.

It must never run anything of the caller's in its own thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from bester import client as asynchronous
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
    """One user's connection to one server. Arguments, promises and errors are those of the asyncio client."""

    def __init__(
        self,
        address: str,
        *,
        user: str,
        password: str,
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
            resend=resend,
            ack=ack,
            manual_ack=manual_ack,
            give_up_s=give_up_s,
            limits=limits or Limits(),
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._gate = threading.Lock()  # whoever passes it hands the loop work before the loop is told to stop
        self._thread = threading.Thread(target=self._serve, name=f"bester client of {address}", daemon=True)
        self._serving = threading.Event()

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(CLOSE_S if kind is None else 0)

    def start(self) -> None:
        """Connect and log in; `with` does it. Raises ConnectFailed, AuthenticationFailed, ServerRefused."""
        self._thread.start()
        self._serving.wait()
        self._open = True
        try:
            self._do(self._client.start)
        except BaseException:
            self.close(0)
            raise

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is unreported, at most so long, hang up, and end the thread.

        0: as after an error, do not wait at all, and acknowledge nothing.
        """
        if not self._open:
            return
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
        """Send a message, after waiting for room where too much is unreported; return its report to be waited for.

        Arguments and errors as with the asyncio client's `submit`.
        """
        report: concurrent.futures.Future[Report] = concurrent.futures.Future()

        async def place() -> None:
            await self._client.room()
            submitted = self._client.submit(type_, data, raw=raw, dedup=dedup, ttl_s=ttl_s, outcome=outcome)
            submitted.add_done_callback(lambda done: _copy(done, report))

        self._do(place)
        return report

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
        """Send a message and wait for its report; TimeoutError after `timeout_s` leaves open what becomes of it."""
        client = self._client
        return self._do(lambda: client.send(type_, data, raw=raw, dedup=dedup, ttl_s=ttl_s, outcome=outcome), timeout_s)

    def receive(self, timeout_s: float | None = None) -> Message:
        """Return the next message. Raises TimeoutError when none came in time, and what ended the client."""
        return self._do(self._client.receive, timeout_s)

    def ack(self, message: Message) -> None:
        """Tell the server that the application is done with a message; twice does no harm."""
        self._do(lambda: self._client.ack(message))

    def outcome(self, message: str, timeout_s: float | None = None) -> dict[str, str] | None:
        """Return what has become of a message by now; None where the server does not know it, or it is another's."""
        return self._do(lambda: self._client.outcome(message), timeout_s)

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server takes, envelope included; None while it has not said so."""
        return self._client.max_frame

    def ping(self, timeout_s: float | None = None) -> float:
        """Return the seconds that the server took to answer."""
        return self._do(self._client.ping, timeout_s)

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages as they come, until the client is closed."""
        while True:
            try:
                yield self.receive()
            except ClientClosed:
                return

    def _do(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None) -> T:
        async def within() -> T:
            async with asyncio.timeout(timeout_s):
                return await work()

        with self._gate:
            if not self._open or self._loop is None:
                raise ClientClosed("not-connected", "the client is not open: use it inside `with`")
            waiting = asyncio.run_coroutine_threadsafe(within(), self._loop)
        try:
            return waiting.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("not-connected", "the client was closed meanwhile") from None
        except BaseException:
            waiting.cancel()  # the caller was interrupted; its wish goes with it
            raise

    def _stop(self) -> None:
        with self._gate:
            if self._open and self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._open = False

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(self._serving.set)
            self._loop.run_forever()


def _copy(done: asyncio.Future[Report], report: concurrent.futures.Future[Report]) -> None:
    error = ClientClosed("not-connected", "the client was closed") if done.cancelled() else done.exception()
    if error is not None:
        report.set_exception(error)
    else:
        report.set_result(done.result())
