"""Contracts: sentences for misfits, schemas that are refused, workers that differ, messages that wait."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.bridge import informer
from bester.broker.core import contract_rules, contracts
from bester.broker.core.contract_rules import MAX_PARTS, fault, measure
from bester.broker.core.contracts import (
    EXPLAINED_STEPS,
    LIST_WEIGHT,
    MAX_KNOWN,
    MAX_STEPS,
    MAX_VALUES,
    Contract,
    ContractError,
    Contracts,
)
from bester.broker.core.effects import Effects, Link
from bester.handlers import payload

LINK = Link("ipc", b"a")
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
    most = MAX_STEPS // measure(schema).costs.visits
    assert most < MAX_VALUES // 4
    contract = Contract(schema, b"")
    assert contract.fault(b"[1" + b",1" * (most - LIST_WEIGHT - 2) + b"]") is None
    assert contract.fault(b"[1" + b",1" * most + b"]") == f"data: more than {most} values, and no more are checked"


MANY = 70_000
HALVES = [n + 0.5 for n in range(5000)]
TOO_MANY = "data: too many numbers; no more are compared with those of the schema"


@pytest.mark.parametrize(
    ("schema", "data", "sentence"),
    [
        ({"items": {"enum": HALVES}}, [5.5] * 100, TOO_MANY),
        ({"items": {"enum": list(range(5000))}}, [5.5] * 100, TOO_MANY),
        ({"items": {"enum": list(range(5000))}}, [5] * 10_000, None),
        ({"items": {"const": HALVES}}, [HALVES[:99]] * 2, TOO_MANY),
        ({"items": {"minimum": 0.5}}, [1] * MANY, TOO_MANY),
        ({"items": {"minimum": 0.5}}, [1.5] * 60_000, None),
        ({"items": {"minimum": 0}}, [1.5] * MANY, None),
        ({"items": {"minimum": 0}}, [10**3999] * 10, TOO_MANY),
        ({"items": {"multipleOf": 0.01}}, [1] * MANY, TOO_MANY),
        ({"items": {"multipleOf": 5}}, [1e300] * 10_000, TOO_MANY),
        ({"items": {"multipleOf": 5}}, [5] * MANY, None),
        ({"uniqueItems": True}, list(range(10**20, 10**20 + 300)), TOO_MANY),
        ({"uniqueItems": True}, list(range(2**60, 2**60 + 3000)), TOO_MANY),
        ({"uniqueItems": True}, list(range(MANY)), None),
        ({"items": {"enum": [[n] for n in range(1000)]}}, [[-1]] * 500, "data: more than 1397 values"),
        ({"items": {"dependentRequired": {f"{n}": ["a"] for n in range(1000)}}}, [{}] * 500, "data: more than 2795"),
        ({"items": {"patternProperties": {f"{n}": True for n in range(100)}}}, [{}] * 2000, "data: more than 10472"),
        ({"allOf": [{"pattern": f"a{n}"} for n in range(100)]}, "x" * 170_000, "data: more than 167772 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_dear_to_compare_is_not_compared(
    schema: Any, data: Any, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enum of 8,000 numbers and an array of 5,000 held the broker for 85 s."""
    contract = Contract(schema, b"")
    if sentence is not None:
        monkeypatch.setattr(contract, "_is_valid", None)  # calling it fails
    found = contract.fault(json.dumps(data).encode())
    assert found is None if sentence is None else found is not None and found.startswith(sentence)


def test_floats_are_read_by_python() -> None:
    """The reader of the library takes 15 µs for each of 1e300: 3 s for the largest frame of a client."""
    assert [module._read.__self__.float_hook for module in (contracts, informer, payload)] == [float] * 3


def test_misfits_are_searched_in_fewer_values_where_a_schema_has_many_branches() -> None:
    branched = {"items": {"anyOf": [{"type": "string", "minLength": number} for number in range(1000)]}}
    assert measure(branched).costs.visits > EXPLAINED_STEPS // 10
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
        Contracts(Effects()).read({"x": schema}, frozenset({"x"}), LINK)
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
        Contracts(Effects()).read(schemas, frozenset(schemas), LINK)


@pytest.mark.parametrize(
    "schemas",
    [
        {"x": {"properties": {f"{n}": {"pattern": "(a|b){900}"} for n in range(300)}}},
        {"x": {"patternProperties": {f"a{{900}}{n}": {} for n in range(300)}}},
        {name: {"properties": {f"{name}{n}": {} for n in range(4500)}} for name in "xy"},
    ],
    ids=["patterns", "names", "parts"],
)
def test_what_takes_long_to_compile_is_refused(schemas: Any) -> None:
    """A schema of 64 KiB with 2,000 patterns took a second and 300 MB."""
    with pytest.raises(ContractError, match="too many parts or patterns"):
        Contracts(Effects()).read(schemas, frozenset(schemas), LINK)


SCALE = 16


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Scale the bounds of contracts down, as thousands of parts take half a second to compile; return MAX_KNOWN."""
    monkeypatch.setattr(contract_rules, "MAX_PARTS", MAX_PARTS // SCALE)
    monkeypatch.setattr(contracts, "CONTRACT_PARTS", contracts.CONTRACT_PARTS // SCALE)
    monkeypatch.setattr(contracts, "MAX_KNOWN", MAX_KNOWN // SCALE)
    return MAX_KNOWN // SCALE


def dear(number: int) -> dict[str, Any]:
    """Return one of several schemas of more than half of the scaled MAX_PARTS."""
    return {"properties": {f"{n}": {} for n in range(5000 // SCALE)}, "title": f"{number}"}


def test_contracts_that_nobody_has_any_more_make_way(few: int) -> None:
    known = Contracts(Effects())
    types = frozenset({"x"})
    for number in range(30):
        known.join(LINK, "a", types, known.read({"x": dear(number)}, types, LINK), 1.0)
        assert known.known_parts <= few // 2
    assert known.of("x") == [known.read({"x": dear(29)}, types, LINK)["x"]]


def test_a_party_leaves_room_for_the_contracts_of_others(few: int) -> None:
    known = Contracts(Effects())
    links = [Link("curve", b"%d" % n, "eve") for n in range(20)]
    types = frozenset({"x"})

    def join(link: Link, number: int) -> None:
        known.join(link, "a", types, known.read({"x": dear(number)}, types, link), 1.0)

    def join_all() -> None:
        for number, link in enumerate(links):
            join(link, number)

    with pytest.raises(ContractError, match="one too many"):
        join_all()
    assert few // 3 < known.known_parts <= few // 2 + MAX_PARTS // SCALE
    for number in range(30, 33):
        join(Link("curve", b"%d" % number, f"honest{number}"), number)


def test_a_schema_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A HELLO of 8,000 parts held the loop by a half longer: to measure takes as long as to compile."""
    measured: list[Any] = []
    real = contract_rules.measure

    def measure(schema: Any) -> contract_rules.Measure:
        measured.append(schema)
        return real(schema)

    monkeypatch.setattr(contract_rules, "measure", measure)
    schemas = {"x": LETTER, "y": {"type": "string"}}
    known = Contracts(Effects()).read(schemas, frozenset(schemas), LINK)
    assert measured == [LETTER, {"type": "string"}]
    assert known["x"].weight == Contract(LETTER, b"").weight


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
        read = self.contracts.read(None if schema is None else {"x": schema}, types, LINK)
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


def test_more_than_four_contracts_of_a_type_are_not_checked() -> None:
    """Each of them takes its time for a payload that none takes, and a party has 64 links."""
    office = Office()
    for number in range(5):
        assert number == 0 or not office.takes(b"[]")
        office.join(f"{number}", {"type": "string", "maxLength": number})
    assert office.takes(b"[]")
    office.leave("0")
    assert not office.takes(b"[]")


def test_a_worker_without_a_contract_takes_everything() -> None:
    office = Office()
    office.join("a", TEXT)
    office.join("b")
    assert office.takes(b"[]") and office.notices() == 1
    office.leave("b")
    assert not office.takes(b"[]")
