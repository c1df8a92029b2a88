"""Contracts: sentences for misfits, schemas that are refused, workers that differ, messages that wait."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.contract_rules import fault, visits
from bester.broker.core.contracts import (
    EXPLAINED_STEPS,
    LIST_WEIGHT,
    MAX_STEPS,
    MAX_VALUES,
    Contract,
    ContractError,
    Contracts,
)
from bester.broker.core.effects import Effects, Link

LETTER = {
    "$ref": "#/$defs/Letter",
    "$defs": {
        "Letter": {
            "type": "object",
            "properties": {
                "to": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
                "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "kind": {"enum": ["a", "b"]},
                "code": {"type": "string", "pattern": "^[a-z]+$"},
                "either": {
                    "anyOf": [{"type": "object", "required": ["x"]}, {"type": "array", "items": {"type": "null"}}]
                },
                "age": {"minimum": 18},
            },
            "required": ["to"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"to": []}', None),
        (b'{"to": ["a"], "n": null, "kind": "b", "code": "x", "age": 1e400}', None),
        (b'{"to": ["a", "b", "c", 1]}', "data.to[3]: expected a string"),
        (b'{"to": "a"}', "data.to: expected an array"),
        (b"{}", "data.to: required, but missing"),
        (b"[]", "data: expected an object"),
        (b'{"to": [], "cc": 1}', "data.cc: not a known field"),
        (b'{"to": [], "n": "x"}', "data.n: expected an integer or null"),
        (b'{"to": [], "n": 1.5}', "data.n: expected an integer or null"),
        (b'{"to": [], "kind": "c"}', "data.kind: not one of the values allowed here"),
        (b'{"to": [], "code": "A"}', "data.code: not allowed (pattern)"),
        (b'{"to": [], "age": 3}', "data.age: not allowed (minimum 18)"),
        (b'{"to": [], "either": [1]}', "data.either[0]: expected null"),
        (b'{"to": ["","","","","",""]}', "data.to: not allowed (max items 5)"),
        (b'{"to": [], "n": 100000000000000000000000}', None),
        (b'{"to": [], "age": 1%s}' % (b"0" * 5000), None),  # more digits than Python reads: as 1e400
        (b'{"to": [], "n": -1%s}' % (b"0" * 5000), "data.n: expected an integer or null"),
    ],
)
def test_misfits_are_named_by_path_and_sentence(body: bytes, sentence: str | None) -> None:
    assert Contract(LETTER, b"").fault(body) == sentence


LISTS = {"type": "array", "items": {"type": "array"}}
BRANCHES = {"anyOf": [{"items": {"type": "string"}}, {"items": {"type": "null"}}]}


@pytest.mark.parametrize(
    ("schema", "count", "sentence"),
    [
        (LISTS, 1000, "data[0]: expected an array"),
        (LISTS, MAX_VALUES - LIST_WEIGHT - 1, "data: does not fit its schema, and is too long to find out where"),
        (LISTS, MAX_VALUES, f"data: more than {MAX_VALUES} values, and no more are checked"),
        (BRANCHES, 1000, "data[0]: expected a string or null"),
        (BRANCHES, EXPLAINED_STEPS // 4, "data: does not fit its schema, and is too long to find out where"),
        ({"items": {"type": "integer"}}, MAX_VALUES - LIST_WEIGHT - 1, None),
        ({"items": {"type": "integer"}}, MAX_VALUES, f"data: more than {MAX_VALUES} values, and no more are checked"),
    ],
)
def test_misfits_of_long_payloads_are_not_searched(
    schema: Any, count: int, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validator that found all errors of half a million values would hold the loop for seconds."""
    sought: list[int] = []
    contract = Contract(schema, b"")
    validate = contract._validate

    def seek(value: Any) -> None:
        sought.append(len(value))
        validate(value)

    monkeypatch.setattr(contract, "_validate", seek)
    assert contract.fault(b"[1" + b",1" * (count - 1) + b"]") == sentence
    assert sought == ([count] if sentence and "expected" in sentence else [])


def test_fewer_values_are_checked_where_a_schema_is_dear() -> None:
    schema = {"items": {"allOf": [{"not": {"type": "string", "minLength": number}} for number in range(1000)]}}
    most = MAX_STEPS // visits(schema)
    assert most < MAX_VALUES // 4
    contract = Contract(schema, b"")
    assert contract.fault(b"[1" + b",1" * (most - LIST_WEIGHT - 2) + b"]") is None
    assert contract.fault(b"[1" + b",1" * most + b"]") == f"data: more than {most} values, and no more are checked"


def test_misfits_are_searched_in_fewer_values_where_a_schema_has_many_branches() -> None:
    branched = {"items": {"anyOf": [{"type": "string", "minLength": number} for number in range(1000)]}}
    assert visits(branched) > EXPLAINED_STEPS // 10
    sentence = "data: does not fit its schema, and is too long to find out where"
    assert Contract(branched, b"").fault(b"[" + b"1," * 9 + b"1]") == sentence


def ladder(steps: int, word: str = "allOf") -> dict[str, Any]:
    """A schema whose parts refer to the next part twice: 2 to the power of `steps` visits."""
    parts = {f"p{n}": {word: [{"$ref": f"#/$defs/p{n + 1}"}, {"$ref": f"#/$defs/p{n + 1}"}]} for n in range(steps)}
    return {"$ref": "#/$defs/p0", "$defs": {**parts, f"p{steps}": {"type": "string"}}}


def twice_below() -> dict[str, Any]:
    """A schema that applies itself twice to each field of a value."""
    again = {"properties": {"a": {"$ref": "#"}}}
    return {"allOf": [again, dict(again)]}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"enum": ["x" * 70_000]}, "bytes"),
        ({"$ref": "http://example.org/schema"}, "a part of the schema itself"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "a part of the schema itself"),
        ({"$ref": "other.json#/x"}, "a part of the schema itself"),
        ({"$ref": "#/$defs/gone"}, "not there"),
        ({"$ref": "#"}, "never end"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"not": {"$ref": "#"}}}}, "never end"),
        (twice_below(), "in several ways"),
        (ladder(13), "parts to one place"),
        (ladder(40, "anyOf"), "parts to one place"),
        ({"pattern": "(?=a)b"}, "cannot be compiled"),
        ({"pattern": "(a{1000}){1000}"}, "pattern"),
        ({"patternProperties": {"a{99999}": {}}}, "pattern"),
        ({"pattern": "("}, "cannot be compiled"),
        ({"$dynamicRef": "#x"}, "not supported"),
        ({"properties": {"a": {"$id": "http://example.org/x"}}}, "$id"),
        ({"type": "strin"}, "cannot be compiled"),
        ([], "no JSON Schema"),
        (5, "no JSON Schema"),
    ],
)  # fmt: skip
def test_hostile_and_broken_schemas_are_refused(schema: Any, why: str) -> None:
    with pytest.raises(ContractError, match="schema of 'x'") as caught:
        Contracts(Effects()).read({"x": schema}, frozenset({"x"}))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        LETTER,
        ladder(5),
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
        {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "all": {"items": {"$ref": "#"}}}},
        {"pattern": "(a+)+$", "type": "string"},
    ],
)
def test_useful_schemas_are_taken(schema: Any) -> None:
    assert fault(schema) is None
    assert (
        Contract(schema, b"").fault(b'"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"') is None
        or schema is not True
    )


def test_all_schemas_of_a_hello_are_bounded_together() -> None:
    schemas = {f"t{n}": {"enum": ["x" * 60_000, n]} for n in range(20)}
    with pytest.raises(ContractError, match="bytes together"):
        Contracts(Effects()).read(schemas, frozenset(schemas))


# --- workers ---

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


class Office:
    """Contracts of some workers."""

    def __init__(self) -> None:
        self.out = Effects()
        self.contracts = Contracts(self.out)

    def join(self, name: str, schema: Any = None) -> None:
        """Let a worker of type x join."""
        types = frozenset({"x"})
        read = self.contracts.read(None if schema is None else {"x": schema}, types)
        self.contracts.join(Link("ipc", name.encode()), name, types, read, 1.0)

    def leave(self, name: str) -> None:
        """Let a worker leave."""
        self.contracts.leave(Link("ipc", name.encode()), 2.0)

    def takes(self, body: bytes) -> bool:
        """Return whether a payload of type x passes."""
        check = self.contracts.by_type.get("x")
        return check is None or check(body) is None

    def notices(self) -> int:
        """Return how often differing contracts were reported."""
        return len(self.out.take().calls)


def test_one_contract_is_compiled_once_and_outlives_its_worker() -> None:
    office = Office()
    for name in ("a", "b"):
        office.join(name, {"type": "string"})
    assert len(office.contracts.of("x")) == 1 and office.notices() == 0
    assert office.takes(b'"t"') and not office.takes(b"5")
    for name in ("a", "b"):
        office.leave(name)
    assert not office.takes(b"5")
    office.join("c")
    assert office.takes(b"5")


def test_workers_that_differ_are_reported_and_what_one_of_them_takes_passes() -> None:
    office = Office()
    office.join("a", TEXT)
    office.join("b", NUMBER)
    assert office.notices() == 1
    assert office.takes(b'"t"') and office.takes(b"5") and not office.takes(b"[]")
    office.leave("a")
    assert office.takes(b"5") and not office.takes(b'"t"')
    office.join("b", TEXT)
    assert office.takes(b'"t"') and not office.takes(b"5")


def test_a_worker_without_a_contract_takes_everything() -> None:
    office = Office()
    office.join("a", TEXT)
    office.join("b")
    assert office.takes(b"[]") and office.notices() == 1
    office.leave("b")
    assert not office.takes(b"[]")
