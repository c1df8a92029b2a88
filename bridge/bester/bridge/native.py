"""The native protocol's JSON, read: frame bodies in, values out. Reports are read in `native_reports`, and the frames
that go out are written in `native_writing`.

`data` is never decoded, and neither is a client's `id`: the text is cut out of its frame, byte by byte. No input from a
peer raises.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Raw

from bester.broker.wire.json_text import (
    LONG_BYTES,
    SHALLOW_BYTES,
    TOO_DEEP,
    UNPAIRED,
    is_utf8,
    too_deep,
    with_unpaired,
    without_surrogates,
)
from bester.broker.wire.messages import MAX_DEDUP, MAX_TOKEN, MAX_TTL_S, Meta
from bester.broker.wire.traceparent import sound

NULL = b"null"
AUTH_ID = b'"auth_special"'
"""The id in an answer to a first frame."""
BAD_JSON = (msgspec.DecodeError, ValueError, RecursionError)
"""Errors of the decoder for a text that is no JSON, or not what is meant."""
_text = msgspec.json.Encoder().encode


class Sent(msgspec.Struct, frozen=True, gc=False):  # a Struct, since every frame has one
    """Message as its sender wrote it: `data` is JSON text, `id` a JSON string or `null` as in the frame.

    `meta`: the client's options, as a Submit has them: `dedup`, `ttl_s`, `outcome`, `resent`, `traceparent`.
    """

    type: str
    data: bytes
    id: bytes
    meta: Meta = {}


class Fault(NamedTuple):
    """Fault of a frame. `fatal`: the peer does not speak the protocol, and the connection ends."""

    id: bytes
    fatal: bool
    text: str
    reason: str = "malformed"


class Client(NamedTuple):
    """First frame with a login. `message`: the frame also carries a message, to be read as a later frame; `acks`: the
    client will acknowledge deliveries."""

    user: str
    password: str
    message: bool
    acks: bool = False


class Server(NamedTuple):
    """First frame of another server: one message, and the claims of its header."""

    sent: Sent
    claims: Meta


class Builtin(NamedTuple):
    """Command of a client to the server itself; `data` is the JSON text beside the command's type."""

    type: str
    data: bytes


class _Payload(msgspec.Struct, gc=False):
    type: str
    data: Raw
    id: Raw = Raw(NULL)
    dedup: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_DEDUP)] | None = None
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_TTL_S)] | None = None
    outcome: bool | None = None
    resent: bool | None = None


class _Header(msgspec.Struct, gc=False):
    traceparent: str | None = None


class _Later(msgspec.Struct, gc=False):
    payload: _Payload
    header: _Header | None = None


class _PayloadOnly(msgspec.Struct, gc=False):
    payload: _Payload


class _IdPayload(msgspec.Struct, gc=False):
    id: Raw = Raw(NULL)


class _IdOnly(msgspec.Struct, gc=False):
    payload: _IdPayload


class _First(msgspec.Struct, gc=False):
    header: Raw = Raw(NULL)
    payload: Raw = Raw(NULL)


class _Login(msgspec.Struct, gc=False):
    username: str
    password: str


_later = msgspec.json.Decoder(_Later).decode
_payload_only = msgspec.json.Decoder(_PayloadOnly).decode
_id_only = msgspec.json.Decoder(_IdOnly).decode
_first = msgspec.json.Decoder(_First).decode
_login = msgspec.json.Decoder(_Login).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_skip = msgspec.json.Decoder(Raw).decode
_string = msgspec.json.Decoder(str).decode
_strings = msgspec.json.Decoder(list[str]).decode
_NO_META: Meta = {}


def later(body: bytes) -> Sent | Fault:
    """Read a frame behind the first one."""
    try:
        try:
            top = _later(body)
            payload, header = top.payload, top.header
        except msgspec.ValidationError:  # a header of another kind is passed over
            payload, header = _payload_only(body).payload, None
        # The decoder lets bad UTF-8 and deep nesting pass; both are checked on JSON alone.
        if not body.isascii() and not is_utf8(body):
            return _unreadable(body)
        id_ = _text(payload.id)  # JSON text as it stands: quicker than `bytes`
        if id_[0] != 0x22 and id_ != NULL:
            return Fault(NULL, False, "payload.id is not a string")
        data = _text(payload.data)
        if len(data) > SHALLOW_BYTES and too_deep(data):
            return Fault(id_, False, f"data is {TOO_DEEP}")
        meta = _NO_META
        if (
            payload.dedup is not None
            or payload.ttl_s is not None
            or payload.outcome is not None
            or payload.resent is not None
        ):
            meta = _options(payload)
        if header is not None and header.traceparent is not None and (parent := sound(header.traceparent)) is not None:
            meta = meta | {"traceparent": parent}
        return Sent(payload.type, data, id_, meta)
    except BAD_JSON:
        return _unreadable(body)


def _options(payload: _Payload) -> Meta:
    """Return the options of a client's message; false ones are left out."""
    fields: Meta = {}
    if payload.dedup is not None:
        fields["dedup"] = payload.dedup
    if payload.ttl_s is not None:
        fields["ttl_s"] = payload.ttl_s
    if payload.outcome:
        fields["outcome"] = True
    if payload.resent:
        fields["resent"] = True
    return fields


def _unreadable(body: bytes) -> Fault:
    """Return the fault of a frame that cannot be decoded. Fatal are frames that are not a JSON object, or too deep to
    be read at all; any other fault concerns one message alone."""
    try:
        _skip(body)
    except BAD_JSON as error:
        return _unpaired(body) or Fault(NULL, True, f"not JSON: {error}")
    if not is_utf8(body):
        return Fault(NULL, True, "not UTF-8")
    if body.lstrip()[:1] != b"{":
        return Fault(NULL, True, "not a JSON object")
    try:
        id_ = bytes(_id_only(body).payload.id)
    except BAD_JSON:
        id_ = NULL
    return Fault(
        id_ if id_[0] == 0x22 else NULL, False, "a payload holds a type (a string), data, an id, no wrong option"
    )


def _unpaired(body: bytes) -> Fault | None:
    """Return the fault of a frame whose only fault are unpaired surrogate escapes; None for any other frame."""
    if len(body) > LONG_BYTES:
        return _unpaired_long(body)
    try:
        top = with_unpaired(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(top, dict):
        return None
    payload = top.get("payload")
    id_ = payload.get("id") if isinstance(payload, dict) else None
    try:
        return Fault(_text(id_) if isinstance(id_, str) else NULL, False, UNPAIRED)
    except UnicodeEncodeError:  # the id has an unpaired surrogate itself
        return Fault(NULL, False, UNPAIRED)


def _unpaired_long(body: bytes) -> Fault | None:
    """Do as `_unpaired` does, without a value for each part of a long frame; an id with surrogate escapes is not
    told."""
    other = without_surrogates(body)
    if other is None:
        return None
    try:
        id_ = bytes(_id_only(other).payload.id)  # which goes through all of the text
    except BAD_JSON:
        id_ = NULL
        try:
            _skip(other)
        except BAD_JSON:
            return None
        if other.lstrip()[:1] != b"{":
            return None
    return Fault(id_ if id_[0] == 0x22 and rb"\ue" not in id_ else NULL, False, UNPAIRED)


def first(body: bytes) -> Client | Server | Fault:
    """Read the first frame of a connection: a client's login, another server's message, or a fault."""
    try:
        top = _first(body)
    except BAD_JSON:
        return _unreadable(body)._replace(fatal=True)
    if not is_utf8(body):
        return Fault(NULL, True, "not UTF-8")
    header = _object(top.header)
    scope = None if header is None else _str(header.get("scope"))
    if header is None or scope not in ("client", "server"):
        return Fault(AUTH_ID, True, 'header.scope is "client" or "server"')
    if scope == "server":
        sent = later(body)
        return sent._replace(fatal=True) if isinstance(sent, Fault) else Server(sent, _claims(header))
    try:
        login = _login(header["authentication"])
    except (KeyError, *BAD_JSON):
        login = _Login("", "")
    if not login.username or not login.password:
        return Fault(AUTH_ID, True, "no user name and password", "authentication-failed")
    payload = _object(top.payload) or {}
    type_, id_ = payload.get("type"), payload.get("id")
    says_something = type_ is not None and bytes(type_) != NULL and _str(type_) != "dummy"
    acks = "ack" in header and bytes(header["ack"]) == b"true"
    return Client(login.username, login.password, says_something and id_ is not None and bytes(id_) != NULL, acks)


def _object(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _fields(raw)
    except BAD_JSON:
        return None


def _str(raw: Raw | None) -> str | None:
    try:
        return None if raw is None else _string(raw)
    except BAD_JSON:
        return None


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN)]
CLAIMS: dict[str, Any] = {
    "server": str,
    "id": str,
    "root": str,
    "origin": str,
    "path": list[str],
    "ttl_s": float,
    "lane": tuple[str, _Count, _Count],
    "again": bool,
    "traceparent": str,
}
"""Fields of a server's header, and their types."""


def _claims(header: dict[str, Raw]) -> Meta:
    """Return the claims of a server's header that are of the right type; none of them is believed here."""
    claims: Meta = {}
    for key, kind in CLAIMS.items():
        if key in header:
            try:
                claims[key] = msgspec.json.decode(header[key], type=kind)
            except BAD_JSON:
                continue
    if "lane" in claims:
        claims["lane"] = list(claims["lane"])  # as the fabric writes it
    return claims


class _Command(msgspec.Struct, gc=False):
    type: str
    data: Raw = Raw(NULL)


class _Builtin(msgspec.Struct, gc=False):
    command: _Command


_builtin = msgspec.json.Decoder(_Builtin).decode


def builtin(data: bytes) -> Builtin | None:
    """Return the command in a builtin message's data; None where there is none."""
    try:
        command = _builtin(data).command
    except BAD_JSON:
        return None
    return Builtin(command.type, bytes(command.data))


def text(data: bytes) -> str | None:
    """Return the value of a JSON string; None where the text is none."""
    return _str(Raw(data))


def texts(data: bytes) -> list[str] | None:
    """Return the values of a JSON array of strings; None where the text is none."""
    try:
        return _strings(data)
    except BAD_JSON:
        return None


class _Passwords(msgspec.Struct, gc=False):
    old: str
    new: str


_passwords = msgspec.json.Decoder(_Passwords).decode


def passwords(data: bytes) -> tuple[str, str] | None:
    """Return the old and the new password of a `passwd` command; None where the text has none."""
    try:
        both = _passwords(data)
    except BAD_JSON:
        return None
    return both.old, both.new
