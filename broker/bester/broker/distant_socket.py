"""The socket of a link to another server, which is trusted no more than a party at an encrypted door (`curve`)."""

from __future__ import annotations

from collections.abc import Callable

import zmq

from bester.broker.fabric_socket import FabricSocket, Frames
from bester.broker.monitor import OnEvent
from bester.broker.turn import Turn
from bester.broker.unread import Unread

_NOBODY = b""
"""The party of all connections of one socket: they are those of one server, one after the other."""


class DistantSocket(FabricSocket):
    """DEALER on which the bytes that come ahead are bounded, and not the messages: at a bound on these libzmq stops the
    input, and a PING among what it has read ends this process, once the connection is reset (zeromq/libzmq 3937)."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        on_frames: Callable[[Frames], None],
        turn: Turn | None = None,
    ) -> None:
        super().__init__(context, kind, on_frames, turn)
        self.socket.rcvhwm = 0
        self._unread = Unread()
        self._descriptor = -1  # of the present connection
        self._receive = self._receive_counted

    def watch(self, events: int, on_event: OnEvent) -> None:
        """Watch as FabricSocket does; `events` hold those of a connection that begins, and that ends."""

        def seen(event: int, value: int) -> None:
            if event == zmq.EVENT_CONNECTED:
                self._descriptor = value
                self._unread.begin(value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._unread.end(value)
            on_event(event, value)

        super().watch(events, seen)

    def sent_ahead(self, *, drained: bool) -> int:
        """Return how many bytes have come that were not read, where they are too many, and 0 where they are not."""
        return sum(size_bytes for _, _, size_bytes in self._unread.look(drained=drained))

    def _receive_counted(self, flags: int) -> Frames:
        frames = self._receive_whole(flags)
        self._unread.count((_NOBODY, self._descriptor), frames)
        return frames
