"""Bytes that hypothesis draws for each target: nearly sound ones, and any."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
from hypothesis import strategies as st

from bester.broker.wire.messages import BODY, MAP, OPERATIONS
from tests.fuzz.targets import KNOWN_KEY, joined

_WORDS = (
    "header", "payload", "scope", "server", "client", "user", "password", "id", "type", "data", "dedup", "ttl_s",
    "lane", "messageType", "statusReport", "status", "good", "bad", "reason", "recipients", "command", "outcome",
    "types", "role", "handler", "bridge", "s2", "s9", "echo", "bester.outcome", "again", "origin", "hops", "path",
    "epoch",
)  # fmt: skip
_texts = st.sampled_from(_WORDS) | st.text(max_size=20) | st.sampled_from(("\ud800", "\0", "x" * 200))
_numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from((0, 1, 2**53, 2**53 + 1, 2**31)) | st.floats()
_leaves = st.none() | st.booleans() | _numbers | _texts
_values: st.SearchStrategy[Any] = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_texts, inner, max_size=5), max_leaves=20
)
_objects = st.dictionaries(_texts, _values, max_size=6)


def _written(value: Any) -> bytes:
    return json.dumps(value).encode()


_frames = st.fixed_dictionaries(
    {"header": st.fixed_dictionaries({"scope": st.sampled_from(("server", "client", "x"))}) | _objects},
    optional={
        "payload": st.fixed_dictionaries({"type": _texts, "data": _values}, optional={"id": _leaves}) | _objects,
        "command": _objects,
    },
)
_bodies = (_frames | _values).map(_written)


@st.composite
def _spoilt(draw: st.DrawFn, sound: st.SearchStrategy[bytes]) -> bytes:
    """Sound bytes, of which some are replaced, left out, or doubled."""
    data = bytearray(draw(sound))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


def _framed(body: bytes, by: int) -> bytes:
    return struct.pack("<I", max(0, len(body) + by)) + body


_streams = st.lists(st.builds(_framed, _bodies, st.sampled_from((0, 0, 0, 0, 1, -1, 5000, 2**20))), max_size=6)
_native_streams = st.tuples(st.binary(min_size=1, max_size=1), _streams.map(b"".join)).map(b"".join)


def _packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value, unicode_errors="surrogatepass"))


_packable: st.SearchStrategy[Any] = st.recursive(
    _leaves | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=12,
)
_ops = st.sampled_from([row.op for row in OPERATIONS]) | st.integers(-1, 300)
_rows = st.tuples(_ops, st.lists(_packable, max_size=8)).map(lambda row: [row[0], *row[1]])
_batches = st.tuples(st.lists(_rows, max_size=4).map(_packed), st.lists(st.binary(max_size=30), max_size=3))
_messages = _batches.map(lambda batch: joined([batch[0], *batch[1]]))


_OF_SERVERS = ("Relay", "Relay", "Relay", "Relayed", "Hello", "Heartbeat", "Error", "Goodbye")
_SPECS = {row.message.__name__: row for row in OPERATIONS}
_ids = st.sampled_from(("s1/e-1/1", "s2/e-1/1", "s3/e-1/1", "s1/honest/1", "s9/e/2", "x", "", "s9/1~s1"))
_lanes = st.tuples(_ids, st.integers(0, 9), st.integers(0, 9)).map(list)
_lies = st.fixed_dictionaries(
    {},
    optional={
        "id": _ids | _leaves, "origin": _ids | _leaves, "root": _ids | _leaves, "again": _leaves, "ttl_s": _leaves,
        "path": st.lists(st.sampled_from(("s1/a", "s1/good", "s9/a", "", "s2")), max_size=40) | _leaves,
        "lane": _lanes | _leaves, "attempt": st.integers(-1, 5),
    },
)  # fmt: skip


def _field(name: str, kinds: Any) -> st.SearchStrategy[Any]:
    """Return what a server that lies puts into a field of this kind."""
    if kinds is BODY:
        return st.sampled_from((b"1", b"{}", b"[", b"", b'"\\ud800"'))
    if kinds is MAP:
        return _lies
    if kinds is not None and int in kinds:
        return st.integers(0, 9) | st.integers(0, 2**53)
    return st.sampled_from(("a", "shared", "slow", "good", "bester.outcome", "delivered", "queued", "s9")) | _ids


@st.composite
def _relays(draw: st.DrawFn) -> bytes:
    """Return messages as a server sends them: of the right form, with lies about origin, path and ids."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        spec = _SPECS[draw(st.sampled_from(_OF_SERVERS))]
        fields = [draw(_field(*each)) for each in zip(spec.message._fields, spec.fields, strict=True)]
        if draw(st.integers(0, 9)) == 0 and fields:
            fields[draw(st.integers(0, len(fields) - 1))] = draw(_packable)
        rows.append([spec.op, *fields])
    return joined([_packed(rows)])


_peers = st.integers(0, 29).map(lambda number: bytes([number]))
_requests = st.tuples(
    st.sampled_from((b"1.0", b"", b"\xff")), st.binary(max_size=4), st.binary(max_size=4),
    st.sampled_from((b"10.0.0.1", b"\xff\xfe", b"")), st.binary(max_size=4),
    st.sampled_from((b"CURVE", b"NULL", b"PLAIN", b"curve")),
    st.just(KNOWN_KEY) | st.binary(max_size=33) | st.binary(min_size=32, max_size=32),
)  # fmt: skip

BYTES: dict[str, st.SearchStrategy[bytes]] = {
    "framing": _spoilt(_native_streams) | st.binary(max_size=300),
    "native": _bodies | _spoilt(_bodies) | st.binary(max_size=200),
    "fabric": _messages | _spoilt(_messages) | st.binary(max_size=200),
    "servers": st.tuples(_peers, _relays() | _messages | _spoilt(_relays())).map(b"".join),
    "zap": _requests.map(lambda each: joined(list(each))) | st.lists(st.binary(max_size=40), max_size=9).map(joined),
}
