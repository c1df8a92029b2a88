"""Records of the wire: read, compared and copied as the NamedTuples that they are declared as."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it ships no types
import msgspec
import pytest

from bester.broker.wire import records
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import OP_OF, Deliver, Request, Submit
from bester.broker.wire.request_meta import RequestMeta

MADE: list[Any] = [
    Request(7, "echo", b"1", "ann", {"id": "s1/7", "path": []}),
    Submit(7, 3, "echo", b"{}", {"dedup": "k"}),
    Deliver(9, "s1/7.0", "echo", b"{}", [[0, 3]], 7, {"origin": "s1"}),
]


class Declared(NamedTuple):
    """A message."""

    token: int
    note: str | None = None


def test_record_is_a_struct() -> None:
    assert all(isinstance(made, msgspec.Struct) for made in MADE)


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_record_is_read_compared_and_copied_as_a_named_tuple(made: Any) -> None:
    kind, values = type(made), tuple(made)
    assert values == tuple(getattr(made, name) for name in kind._fields) == made[:]
    assert (len(made), made[0]) == (len(values), values[0])
    assert made._asdict() == dict(zip(kind._fields, values, strict=True))
    assert kind(*values) == made
    changed = made._replace(meta={"other": 1})
    assert changed != made
    assert tuple(changed) == (*values[:-1], {"other": 1})
    assert kind(*values[: len(values) - len(kind._field_defaults)])[:] == (
        *values[: len(values) - len(kind._field_defaults)], *kind._field_defaults.values()
    )  # fmt: skip


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_record_cannot_be_changed(made: Any) -> None:
    with pytest.raises(AttributeError):
        made.meta = {}


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_record_is_encoded_alike_by_msgspec_and_by_the_codec(made: Any) -> None:
    assert encode([made]) == [msgspec.msgpack.encode([made])]
    assert msgpack.unpackb(encode([made])[0]) == [[OP_OF[type(made)], *made]]


def test_without_msgspec_the_named_tuple_itself_is_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    assert records.record(99)(Declared) is not Declared
    monkeypatch.setattr(records, "msgspec", None)
    assert records.record(99)(Declared) is Declared
    assert records.row_of(Declared) is None


@pytest.mark.parametrize("more", [{}, {"peer": "s2", "traceparent": "00-1"}, {"deadline_ms": 5}, {"shadow": True}])
def test_meta_of_a_request_reads_and_is_encoded_as_the_map_that_it_stands_for(more: dict[str, Any]) -> None:
    meta: dict[str, Any] = {
        "id": "s1/7", "root": "s1/7", "origin": "s1", "scope": "client", "attempt": 1, "path": ["s1/a"],
    } | more  # fmt: skip
    struct: Any = RequestMeta(**meta)
    assert struct == meta
    assert struct == RequestMeta(**meta)
    assert struct != meta | {"attempt": 2}
    assert {**struct} == meta
    assert list(struct) == list(meta)
    assert [struct.get(key) for key in (*meta, "other")] == [*meta.values(), None]
    assert "other" not in struct
    with pytest.raises(KeyError):
        struct["other"]
    request = Request(7, "echo", b"1", "ann", struct)
    assert encode([request]) == [msgspec.msgpack.encode([request])]
    assert decode(encode([request])) == [Request(7, "echo", b"1", "ann", meta)]
