"""Answers: deliveries to their senders alone, which complete the messages that they answer. Pure.

The answers of a run are written together, in one piece for each connection: each frame with the good report behind it.
Such a frame needs no mark: the order of the stream is confirmation enough, unless the client may ask for the report on
another connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from bester.bridge import native_writing
from bester.bridge.confirmations import Confirmations
from bester.bridge.frames import HEADER_BYTES, HEADERS, SHORT_BYTES
from bester.bridge.outbound import Outbound
from bester.bridge.ports import ClientConnection
from bester.bridge.submission import State, Submission
from bester.broker.wire.messages import Deliver, Meta

_SENT = State.SENT
_text = msgspec.json.Encoder().encode
_RECEIVED, _GOOD, _MESSAGE, _END = native_writing.RECEIVED, native_writing.GOOD, b',"message":', b"}}"
_GOOD_BYTES = len(_GOOD) + len(_MESSAGE) + len(_END)
"""Length of a report without its two ids."""
_USUAL = 2
"""Count of the facts on the usual answer: its origin, and its message."""


class _Piece:
    """Frames for one connection, the `owner`, in `parts`, with room for so many more bytes; `sizes` are those of the
    messages that they report. `targets` are those of the latest answer, which is to the owner alone."""

    __slots__ = ("owner", "parts", "room_bytes", "sizes", "targets")

    def __init__(self, owner: ClientConnection, room_bytes: int) -> None:
        self.owner = owner
        self.room_bytes = room_bytes
        self.parts: list[bytes] = []
        self.sizes: list[int] = []
        self.targets: list[list[int]] = []


class _Around(NamedTuple):
    """Parts of the frames of answers of one type and origin: between the id of the result and the body, and behind the
    body. `size_bytes` is the length of such a frame without id and body."""

    type: str | None
    origin: Any
    before: bytes
    behind: bytes
    size_bytes: int


def _around(type_: str, meta: Meta) -> _Around:
    before, behind = native_writing.around_body(type_, meta)
    before = b".0" + before  # the id of the result goes on with the number of the target
    return _Around(type_, meta.get("origin"), before, behind, len(_RECEIVED) - 1 + len(before) + len(behind))


class Answers:
    """Writer of the answers of one bridge. `targets` are the connections by session; `reported` lets a connection go on
    after its reports."""

    def __init__(
        self, targets: Mapping[int, ClientConnection], outbound: Outbound,
        reported: Callable[[ClientConnection, float], None],
    ) -> None:  # fmt: skip
        self._targets = targets
        self._room, self._push_run = outbound.room, outbound.push_run
        self._reported = reported
        self._around = _Around(None, None, b"", b"", 0)  # of the latest answer

    def write(
        self, run: Sequence[Deliver], begin: int, unreported: MutableMapping[int, Submission],
        confirmations: Confirmations, now: float,
    ) -> int:  # fmt: skip
        """Write the answers that stand together in a run of deliveries, from the place `begin` on; return their number.
        Their messages are taken out of those `unreported`, and their deliveries have ended.

        An answer is the delivery that completes a submitted message, to the sender alone, as the reply's first target,
        where the connection has room for it. Any other delivery is to be written on its own.
        """
        pieces: dict[int, _Piece] = {}
        serials: list[int] = []
        type_, origin, before, behind, around_bytes = self._around
        for message in islice(run, begin, None):
            token = message.token
            submission = None if token is None else unreported.get(token)
            if (
                token is None
                or submission is None
                or submission.state is not _SENT
                or "dedup" in submission.submit.meta
            ):
                break
            session = submission.session
            piece = pieces.get(session)
            if piece is None:
                owner = self._targets.get(session)
                if owner is None or owner.session.acks:
                    break
                piece = pieces[session] = _Piece(owner, self._room(owner))
            if message.targets is not piece.targets:
                if message.targets != [[0, session]]:
                    break
                piece.targets = message.targets
            meta = message.meta
            message_id = meta.get("message")
            if message_id is None or len(meta) != _USUAL:
                break
            if message.type != type_ or meta.get("origin") != origin:
                if type(meta.get("origin")) is not str:
                    break
                self._around = _around(message.type, meta)
                type_, origin, before, behind, around_bytes = self._around
            body, sent_id, id_text, message_text = message.body, submission.id, _text(message.id), _text(message_id)
            received = around_bytes + len(id_text) + len(body)
            good = _GOOD_BYTES + len(sent_id) + len(message_text)
            piece.room_bytes = room_bytes = piece.room_bytes - received - good - 2 * HEADER_BYTES
            if room_bytes < 0:
                break
            del unreported[token]
            piece.parts += (
                HEADERS[received] if received < SHORT_BYTES else received.to_bytes(4, "little"),
                _RECEIVED, id_text[:-1], before, body, behind,
                HEADERS[good] if good < SHORT_BYTES else good.to_bytes(4, "little"),
                _GOOD, sent_id, _MESSAGE, message_text, _END,
            )  # fmt: skip
            piece.sizes.append(submission.size)
            serials.append(message.serial)
        if serials:
            confirmations.at_once(serials)
            for piece in pieces.values():
                if piece.sizes:
                    self._end(piece, now)
        return len(serials)

    def _end(self, piece: _Piece, now: float) -> None:
        """Queue a piece for its connection, and count its messages as reported."""
        count, size_bytes, window = len(piece.sizes), sum(piece.sizes), piece.owner.session.window
        window.sender.on_copies(1, count)
        window.count_out(count, size_bytes, size_bytes)
        self._push_run(piece.owner, b"".join(piece.parts))
        self._reported(piece.owner, now)
