"""Answers: deliveries to their senders alone, which complete the messages that they answer. Pure.

The answers of a run are written together, in one piece for each connection: each frame with the good report behind it.
Such a frame needs no mark: the order of the stream is confirmation enough, unless the client may ask for the report on
another connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from bester.bridge import native
from bester.bridge.confirmations import Confirmations
from bester.bridge.frames import HEADER_BYTES, HEADERS, SHORT_BYTES
from bester.bridge.outbound import Outbound
from bester.bridge.ports import ClientConnection
from bester.bridge.submissions import State, Submission
from bester.broker.wire.messages import Deliver

_SENT = State.SENT
_text = msgspec.json.Encoder().encode
_RECEIVED, _GOOD, _MESSAGE, _END = native.RECEIVED, native.GOOD, b',"message":', b"}}"
_FIXED_BYTES = len(_GOOD) + len(_MESSAGE) + len(_END)
"""Length of a report without its two ids."""


class _Piece:
    """Frames for one connection, the `owner`, in `parts`, with room for so many more bytes; `size_bytes` is that of the
    messages that they report."""

    __slots__ = ("count", "owner", "parts", "room_bytes", "size_bytes")

    def __init__(self, owner: ClientConnection, room_bytes: int) -> None:
        self.owner = owner
        self.room_bytes = room_bytes
        self.parts: list[bytes] = []
        self.count = self.size_bytes = 0


class Answers:
    """Answers of one run that are not written yet. `targets` are the connections by session; `reported` lets a
    connection go on after its reports."""

    def __init__(
        self, targets: Mapping[int, ClientConnection], outbound: Outbound,
        reported: Callable[[ClientConnection, float], None],
    ) -> None:  # fmt: skip
        self._targets = targets
        self._room, self._push_run = outbound.room, outbound.push_run
        self._reported = reported
        self.pieces: dict[int, _Piece] = {}
        """What is begun, by session."""
        self._serials: list[int] = []  # of the deliveries that are these answers, in order
        self._kind: tuple[Any, ...] = ()  # type, origin and mark of the latest answer, and what stands around its body
        self._before = self._behind = b""
        self._around_bytes = 0

    def add(self, message: Deliver, submission: Submission) -> bool:
        """Add the delivery that completes a submitted message. Return whether it is an answer to the sender alone, as
        the reply's first target, with room for it; any other is to be written on its own."""
        session = submission.session
        if message.targets != [[0, session]]:
            return False
        piece = self.pieces.get(session) or self._begin(session)
        meta, type_ = message.meta, message.type
        message_id = meta.get("message")
        if (
            piece is None or message_id is None
            or submission.state is not _SENT or "dedup" in submission.submit.meta
        ):  # fmt: skip
            return False
        kind = (type_, meta.get("origin"), "redelivered" in meta and meta["redelivered"] is True)
        if kind != self._kind:
            before, self._behind = native.around_body(type_, meta)
            self._kind, self._before = kind, before[1:]  # its quote ends the text of the id
            self._around_bytes = len(_RECEIVED) + len(self._before) + len(self._behind)
        body, sent_id = message.body, submission.id
        id_text, message_text = _text(f"{message.id}.0"), _text(message_id)
        received = self._around_bytes + len(id_text) + len(body)
        good = _FIXED_BYTES + len(sent_id) + len(message_text)
        room_bytes = piece.room_bytes - received - good - 2 * HEADER_BYTES
        if room_bytes < 0:
            return False
        piece.room_bytes = room_bytes
        piece.parts += (
            HEADERS[received] if received < SHORT_BYTES else received.to_bytes(4, "little"),
            _RECEIVED, id_text, self._before, body, self._behind,
            HEADERS[good] if good < SHORT_BYTES else good.to_bytes(4, "little"),
            _GOOD, sent_id, _MESSAGE, message_text, _END,
        )  # fmt: skip
        piece.count += 1
        piece.size_bytes += submission.size
        self._serials.append(message.serial)
        return True

    def _begin(self, session: int) -> _Piece | None:
        """Begin the piece of a session; None where its frames must be written one by one."""
        owner = self._targets.get(session)
        if owner is None or owner.session.acks:
            return None
        piece = self.pieces[session] = _Piece(owner, self._room(owner))
        return piece

    def write(self, confirmations: Confirmations, now: float) -> None:
        """Queue the answers for their connections, and count their messages as reported, and their deliveries as
        ended."""
        pieces, self.pieces = self.pieces, {}
        if self._serials:
            confirmations.at_once(self._serials)
            self._serials = []
        for piece in pieces.values():
            if piece.count:
                window = piece.owner.session.window
                window.sender.on_copies(1, piece.count)
                window.count_out(piece.count, piece.size_bytes, piece.size_bytes)
                self._push_run(piece.owner, b"".join(piece.parts))
                self._reported(piece.owner, now)
