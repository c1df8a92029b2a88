"""The names of message types: which spelling is good, and which types are Bester's own."""

from __future__ import annotations

import pytest

from bester.broker.wire.messages import MAX_TYPE
from bester.broker.wire.type_names import is_reserved, type_fault


def test_spelling_of_a_type() -> None:
    assert [type_fault(name) for name in ("m1", "één", "a/b", "beste")] == [None] * 4
    assert all(type_fault(name) for name in ("", "builtin", "bester.x", "a\tb", " a", "a,b", "x" * (MAX_TYPE + 1)))


@pytest.mark.parametrize("type_", ["dummy", "builtin", "bester.outcome", "bester."])
def test_reserved_types(type_: str) -> None:
    assert is_reserved(type_)


@pytest.mark.parametrize("type_", ["chat", "bester", "besteR.x", "dummy2", ""])
def test_types_that_are_not_reserved(type_: str) -> None:
    assert not is_reserved(type_)
