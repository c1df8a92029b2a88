"""What a client writes and reads: values on one side, frame bodies on the other. Pure.

The data of a message is never interpreted here and never written anew: it goes
out as the JSON text that was given, and comes in as the text that was sent.
Nothing that a server writes makes `parse` raise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """What the server says became of one message.

    `good`: everyone it was for has it, or will (see `recipients`). `reason`: the first failure's code, where it is
    bad and the server says why. `recipients`: name -> outcome (`delivered`, `queued`, `sent`, `failed:CODE`); empty
    where all are `delivered`, and with servers that do not tell. `message`: the server's own id of the message, if it
    gives one. `id`: ours, as sent. `frame`: the report as it came.
    """

    good: bool
    id: str | None
    reason: str | None = None
    message: str | None = None
    recipients: dict[str, str] = field(default_factory=dict)
    frame: bytes = field(default=b"", repr=False, compare=False)


class Message:
    """A message that was received.

    `type`: the handler it came from. `raw`: its data, the JSON text byte for byte. `data`: the same, decoded when first
    asked for. `id`: what it is known by when it comes twice, `origin`: the server where it entered, `redelivered`:
    it may have been delivered before; None and False with servers that do not tell. `frame`: all of it, as it came.
    """

    __slots__ = ("_data", "_raw", "frame", "id", "origin", "redelivered", "type")

    def __init__(
        self,
        type_: str,
        raw: msgspec.Raw,
        *,
        id_: str | None = None,
        origin: str | None = None,
        redelivered: bool = False,
        frame: bytes = b"",
    ) -> None:
        self.type = type_
        self.id = id_
        self.origin = origin
        self.redelivered = redelivered
        self.frame = frame
        self._raw = raw
        self._data: Any = msgspec.UNSET

    @property
    def raw(self) -> bytes:
        return bytes(self._raw)

    @property
    def data(self) -> Any:
        """Raises ValueError where Python has no value for it (`1e400`); `raw` always works."""
        if self._data is msgspec.UNSET:
            self._data = self.decode(Any)
        return self._data

    def decode(self, type_: type[T]) -> T:
        """Return the data as a `type_` (a msgspec Struct, a dataclass, `dict[str, int]` …). Raises ValueError."""
        try:
            return msgspec.json.decode(self._raw, type=type_)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"the data of {self!r}: {error}") from error

    def __repr__(self) -> str:
        return f"Message(type={self.type!r}, id={self.id!r}, origin={self.origin!r}, {len(self.raw)} bytes)"


class Pong(NamedTuple):
    """The answer to a ping."""

    id: str | None


class Unreadable(NamedTuple):
    """A frame that says nothing a client understands."""

    why: str


class _Header(msgspec.Struct, gc=False):
    kind: str | None = msgspec.field(name="messageType", default=None)
    status: str | None = None
    id: str | None = None
    origin: str | None = None
    redelivered: bool | None = None


class _Payload(msgspec.Struct):
    id: str | None = None
    type: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    reason: str | None = None
    message: str | None = None
    recipients: dict[str, str] | None = None


class _Frame(msgspec.Struct):
    header: _Header | None = None
    payload: _Payload | None = None


_decode = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.Encoder().encode
_NO_HEADER = _Header()

LOGIN_ID = "auth_special"
"""The id of the answer to the first frame."""


def parse(body: bytes) -> Message | Report | Pong | Unreadable:
    """Return what a frame from the server says; `header` may be null or bare, as old servers have it."""
    try:
        decoded = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Unreadable(str(error))
    header, payload = decoded.header or _NO_HEADER, decoded.payload
    if payload is None:
        return Unreadable("no payload")
    if header.kind == "statusReport":
        good = header.status == "good"
        return Report(good, payload.id, payload.reason, payload.message, payload.recipients or {}, body)
    if payload.type == "dummy" and header.kind is None:
        return Pong(payload.id)
    if payload.type is None or header.kind not in (None, "receivedMessage"):
        return Unreadable("neither a message nor a report")
    return Message(
        payload.type,
        payload.data,
        id_=header.id,
        origin=header.origin,
        redelivered=bool(header.redelivered),
        frame=body,
    )


def login(user: str, password: str) -> bytes:
    """Return the first frame's body. It carries no message, so that exactly one answer comes."""
    authentication = _encode({"username": user, "password": password})
    return (
        b'{"header":{"scope":"client","authentication":' + authentication + b'},"payload":{"data":null,"type":"dummy"}}'
    )


def message(type_: str, data: bytes, id_: str, dedup: str | None) -> bytes:
    """Return the body of a message; `data` is JSON text."""
    key = b"" if dedup is None else b',"dedup":' + _encode(dedup)
    return b'{"header":null,"payload":{"type":%b,"data":%b,"id":%b%b}}' % (_encode(type_), data, _encode(id_), key)


CLOSE = message("builtin", b'{"command":{"type":"close"}}', "close", None)
