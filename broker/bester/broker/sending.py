"""Sends the broker's messages to the peers of its listening sockets, one batch a peer in a turn of the loop.

A link for which ZeroMQ has no room is tried again, in order, until it is given up (`full_links`). Nothing else is
decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from bester.broker.core.effects import Link
from bester.broker.fabric_socket import FabricSocket
from bester.broker.full_links import FullLinks
from bester.broker.wire.batches import batches
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import Message
from bester.broker.wire.runs import write_run

LOST_AT_ONCE = 16
"""Links that are lost in one turn because they cannot be sent to; others are tried again in the next. A party may let
a hundred links go at once."""
LOST_S = 0.001
"""Time in one turn for which that goes on: each link may hold messages that go to other handlers, hundreds of which
take some milliseconds."""
FULL_RETRY_S = 0.05
"""Interval at which full links are tried again: each try takes some microseconds, and a party has up to 64 links."""


class Sending:
    """Sends by these sockets, whose numbers begin the keys of links.

    `cannot_send(link, message, error)` returns the substitute of a message that cannot be encoded. `lose(link, unsent)`
    takes in that a link is given up, with the messages that surely did not leave; `leave(link, messages)` leaves
    messages to the next turn.
    """

    def __init__(
        self,
        sockets: Sequence[FabricSocket],
        cannot_send: Callable[[Link, Message, WireError], Message | None],
        lose: Callable[[Link, Sequence[Message]], None],
        leave: Callable[[Link, Sequence[Message]], None],
    ) -> None:
        self._sockets = sockets
        self._cannot_send = cannot_send
        self._on_lost = lose
        self._leave = leave
        self.full = FullLinks()
        """Links for which ZeroMQ has no room, with what waits for them."""
        self._handle: asyncio.TimerHandle | None = None  # of the next attempt at full links
        self._lost = 0  # links of this turn that could not be sent to
        self._lost_s = 0.0  # time that their loss took

    def begin(self) -> None:
        """Begin a turn of the loop."""
        self._lost, self._lost_s = 0, 0.0

    def send(self, link: Link, messages: Sequence[Message]) -> None:
        """Send messages, or keep them behind those that wait for the link."""
        socket, identity = self._socket_of(link)
        run = write_run(messages)
        all_frames = batches(messages, partial(self._cannot_send, link)) if run is None else iter((run,))
        if link in self.full:
            self.full.add(link, all_frames, messages, time.monotonic())
            self._end_full(link)
            return
        sent, frames = False, list[bytes]()
        try:
            for frames in all_frames:
                socket.send_to(identity, link.party, frames)
                sent = True
        except zmq.Again:  # the peer does not read, or ZeroMQ's thread is late
            self.full.add(link, (frames, *all_frames), messages, time.monotonic(), begun=sent)
            self._try_full_later()
        except zmq.ZMQError:  # EHOSTUNREACH: the peer has gone
            if not sent and not self._may_lose:
                self._leave(link, messages)
                return
            # After a batch that was sent, the last message surely was not.
            self._lose(link, messages[-1:] if sent else messages)

    def take(self, link: Link) -> list[Message]:
        """Forget what waits for a full link; return the messages that surely did not leave."""
        return self.full.take(link)

    def close(self) -> None:
        """Try no more."""
        if self._handle is not None:
            self._handle.cancel()

    def _socket_of(self, link: Link) -> tuple[FabricSocket, bytes]:
        """Return the socket of a link, and the routing id there."""
        index, _, identity = link.key.partition(b":")
        return self._sockets[int(index)], identity

    @property
    def _may_lose(self) -> bool:
        return self._lost < LOST_AT_ONCE and self._lost_s < LOST_S

    def _lose(self, link: Link, unsent: Sequence[Message]) -> None:
        began = time.monotonic()
        self._lost += 1
        self._on_lost(link, unsent)
        self._lost_s += time.monotonic() - began

    def _end_full(self, link: Link) -> None:
        """Give up a full link for which too much waits, or for too long. Others are tried again later."""
        if self._may_lose and self.full.is_over(link, time.monotonic()):
            self._lose(link, self.full.take(link))
        self._try_full_later()

    def _try_full_later(self) -> None:
        if self.full and self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(FULL_RETRY_S, self._try_full)

    def _try_full(self) -> None:
        """Send what waits for full links, as far as there is room by now."""
        self._handle = None
        self.begin()
        for link in self.full.links():
            socket, identity = self._socket_of(link)
            try:
                self.full.send(link, partial(socket.send_to, identity, link.party), time.monotonic())
            except zmq.Again:
                self._end_full(link)
            except zmq.ZMQError:  # EHOSTUNREACH: the peer has gone
                if self._may_lose:
                    self._lose(link, self.full.take(link))
        for each in self._sockets:
            each.look_after_sending()
        self._try_full_later()
