"""ZAP: the answer to each handshake at an encrypted door, by whether the key is known.

libzmq asks a REP socket of the same context for the answer; the socket is read on the loop. (`zmq.auth` is not used:
none of its hooks sees address and key of a refused party together, and it answers in a coroutine or a thread of its
own.)
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Container, Sequence

import zmq
from zmq.utils import z85

from bester.broker import link_counts
from bester.broker.connections import ConnectionNumbers
from bester.broker.fabric_socket import FabricSocket, Frames
from bester.broker.fence import Fence
from bester.broker.link_counts import LinkCounts
from bester.broker.long_messages import HELD_OFF, LongMessages

_IDENTITY = b"\x08Identity"
"""Name of the routing id among the properties of a connection, as ZMTP writes it."""
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = b"bester"
ENVELOPE = 2
"""Frames before a request: the routing id of who asks, and an empty one."""
KEY_BYTES = 32
ANSWER_S = 0.001
"""Seconds of a turn in which requests are answered, as many as a door has for reading (`curve.READ_S`)."""
LATER = b"500"
"""ZAP's status for a known key that is not let in for now: with 300, of a failure that passes, libzmq ends the
connection without a word, as it does after a wrong key of the server."""
OnRefused = Callable[[str, str, str], None]
"""Called with the address of a refused party, its key (empty where it showed none), and the reason."""


class Zap:
    """ZAP handler of one context: lets in the keys of `known`, unless `long_messages` hold them off, or they have as
    many `links` as they may. Each connection has one of `numbers`. Make it before any socket of the context binds; the
    thread of its doors has the one bit of `affinity`, or is the context's only one.

    libzmq asks while it reads what a party says of itself, the routing id among that: an answer that came before it had
    read on would be overruled. So the answer waits until the thread has passed a `Fence`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        known: Container[str],
        on_refused: OnRefused,
        numbers: ConnectionNumbers,
        long_messages: LongMessages | None = None,
        links: LinkCounts | None = None,
        affinity: int = 0,
    ) -> None:
        self._known = known
        self._long = long_messages or LongMessages()
        self._links = links or LinkCounts()
        self._numbers = numbers
        self._on_refused = on_refused
        self._answers: list[Frames] = []  # that wait for the fence after this one
        self._due: list[Frames] = []  # that wait for this fence
        self._fence = Fence(context, affinity, self._send_due)
        self._socket = FabricSocket(context, zmq.ROUTER, self._take, drain_s=ANSWER_S)
        self._socket.socket.set_hwm(0)  # each request is of one connection
        self._socket.socket.bind(ZAP_ENDPOINT)
        self._socket.register()

    def _take(self, frames: Frames) -> None:
        asker, request = frames[:ENVELOPE], frames[ENVELOPE:]
        reply, refused = zap_reply(request, self._known, self._why_later)
        if refused is not None:
            self._numbers.next_name(b"")  # so that its door does not take it for one that never came to ask
            self._on_refused(*refused, reply[3].decode() if reply[2] == LATER else "the key is not known here")
        else:
            reply[4] = self._numbers.next_name(reply[4])
            number = b"%d" % self._numbers.last
            reply[5] = _IDENTITY + struct.pack(">I", len(number)) + number
        self._answers.append(asker + reply)
        self._pass_fence()

    def _pass_fence(self) -> None:
        if self._answers and not self._due:
            self._due, self._answers = self._answers, []
            self._fence.ask()

    def _send_due(self) -> None:
        due, self._due = self._due, []
        for answer in due:
            self._socket.send(answer)
        self._socket.look_again()
        self._pass_fence()

    def _why_later(self, key: str) -> str:
        """Return why a key is not let in for now, empty where it is."""
        if self._long.is_held_off(key, time.monotonic()):
            return HELD_OFF
        return "" if self._links.has_room(key.encode()) else link_counts.WHY

    def close(self) -> None:
        """Answer no more."""
        self._fence.close()
        self._socket.close()


def zap_reply(
    frames: Sequence[bytes], known: Container[str], why_later: Callable[[str], str] = lambda key: ""
) -> tuple[list[bytes], tuple[str, str] | None]:
    """Return the frames that answer a ZAP request, and address and key of a party that is refused, None for one that is
    let in. `why_later` returns the reason why a known key is not let in for now. Frames that are missing are empty;
    nothing in a request raises."""
    version, request, _, address, _, mechanism, credential = [*frames, *[b""] * 7][:7]
    key = ""
    if mechanism == b"CURVE" and len(credential) == KEY_BYTES:
        key = z85.encode(credential).decode()
    if key and key in known:
        if why := why_later(key):
            return [version, request, LATER, why.encode(), b"", b""], (address.decode(errors="replace"), key)
        return [version, request, b"200", b"", key.encode(), b""], None
    return [version, request, b"400", b"the key is not known", b"", b""], (address.decode(errors="replace"), key)
