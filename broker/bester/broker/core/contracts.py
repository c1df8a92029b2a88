"""Contracts: the JSON Schemas that handlers register, by which bad payloads are refused before they are dispatched.

A schema is compiled once. The validator is jsonschema-rs: it is compiled code, where fastjsonschema generates Python
source from a stranger's schema, and its patterns can be had in linear time. Pure: nothing is read from outside.

Where the workers of a type have registered different contracts, a payload is refused only where none of them takes
it; a worker without a contract takes every payload. The contract of a type outlives its last worker, until another
joins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jsonschema_rs
import msgspec

from bester.broker.core import contract_rules
from bester.broker.core.contract_costs import numbers_in
from bester.broker.core.effects import Effects, Link
from bester.broker.wire.json_text import has_more_values
from bester.broker.wire.notes import describe, safe_note

MAX_KNOWN = 65_536
"""Parts (see `contract_rules.MAX_PARTS`) of all contracts known at once, a contract counted as CONTRACT_PARTS more;
some kilobytes each. Above half of it those of types without a worker are forgotten; then a HELLO is refused of a party
that has more than all leave."""
CONTRACT_PARTS = 32
MAX_DIFFERENT = 4
"""Different contracts of one type's workers; with more none is checked, as each takes its time."""
PATTERN_BYTES = 256 * 1024
"""Memory of one compiled pattern."""
MAX_VALUES = 262_144
"""Values of a payload that is checked, an array or object counted as LIST_WEIGHT more: to make and check as many takes
10 to 30 ms. Anybody who may send a message chooses them, so that one with more is refused."""
LIST_WEIGHT = 8
"""Time for an array or object beside its elements, in values."""
MAX_STEPS = 16 * 1024 * 1024
"""The same times what the schema applies to one place of the value at worst, some 4 ns each; usual schemas stay below
64, so that MAX_VALUES is all that counts."""
MAX_COMPARED = 64 * 1024
"""Comparisons of numbers that are no small integers, some 1 µs each: those of the value with those of the schema."""
FEW_BYTES = 64
"""Data with fewer bytes have no numbers of hundreds of digits."""
EXPLAINED_BYTES = 64 * 1024
"""Longest payload whose misfit is named: the library writes the whole value into its error."""
EXPLAINED_STEPS = 8 * 1024
"""The same in steps, counted as MAX_STEPS, where a schema has branches (anyOf, oneOf): the library looks for all errors
of each branch, and takes 10 µs for every one."""
_KINDS = {
    "string": "a string", "integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null",
    "array": "an array", "object": "an object",
}  # fmt: skip
_read = msgspec.json.Decoder(float_hook=float).decode
"""Reads JSON. The library's own reader of floats takes 15 µs for each of 1e300, Python's a tenth of one."""


class ContractError(Exception):
    """A schema that cannot be a contract; the text says why."""


class Contract:
    """Compiled schema of one message type."""

    __slots__ = (
        "_costs", "_explained_values", "_is_valid", "_most_bytes", "_most_values", "_validate", "schema", "text",
        "weight",
    )  # fmt: skip

    def __init__(self, schema: Any, text: bytes, measure: contract_rules.Measure | None = None) -> None:
        """Compile; `measure` is the schema's, where that is known. Raises ContractError."""
        costs, parts = _measure(schema) if measure is None else measure
        options = jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=PATTERN_BYTES)
        try:
            validator: Any = jsonschema_rs.validator_for(schema, retriever=_retrieve_nothing, pattern_options=options)
        except BaseException as error:  # noqa: BLE001 (a panic of the compiled library is no Exception)
            raise ContractError(f"cannot be compiled: {describe(error)}") from None
        self.schema = schema
        self.text = text
        self._is_valid: Callable[[Any], bool] = validator.is_valid
        self._validate: Callable[[Any], None] = validator.validate
        self.weight = CONTRACT_PARTS + parts
        visits = costs.visits + costs.steps
        self._costs = costs
        self._most_bytes = MAX_STEPS // costs.patterns if costs.patterns else None
        self._most_values = min(MAX_VALUES, MAX_STEPS // visits)
        branched = contract_rules.has_branches(schema)
        self._explained_values = EXPLAINED_STEPS // visits if branched else self._most_values

    def fault(self, body: bytes) -> str | None:
        """Return what is wrong with a payload as one sentence with its path, None where the payload is good. The path
        of a long payload's misfit is not searched."""
        if has_more_values(body, self._most_values, LIST_WEIGHT):
            return f"data: more than {self._most_values} values, and no more are checked"
        if self._most_bytes is not None and len(body) > self._most_bytes:
            return f"data: more than {self._most_bytes} bytes, and no more are matched with patterns"
        try:
            value = _read(body)
        except msgspec.DecodeError:  # JSON beyond msgspec's numbers
            value = json.loads(body, parse_int=_integer)
        if self._compares_too_much(body, value):
            return "data: too many numbers; no more are compared with those of the schema"
        try:
            if self._is_valid(value):
                return None
            if len(body) > EXPLAINED_BYTES or has_more_values(body, self._explained_values, LIST_WEIGHT):
                return "data: does not fit its schema, and is too long to find out where"
            self._validate(value)
        except jsonschema_rs.ValidationError as error:
            return safe_note(_sentence(error))
        except Exception as error:  # noqa: BLE001 (a fault of the library must not cost the message)
            return safe_note(f"data: cannot be checked: {error}")
        return None

    def _compares_too_much(self, body: bytes, value: Any) -> bool:
        """Return whether the numbers of a value are too many to be compared with those of the schema."""
        costs = self._costs
        constants = costs.slow + costs.numbers + costs.bounds + costs.unique
        if not constants or (len(body) < FEW_BYTES and not has_more_values(body, MAX_COMPARED // constants, 0)):
            return False
        return costs.comparisons(numbers_in(value)) > MAX_COMPARED


def _measure(schema: Any) -> contract_rules.Measure:
    """Measure a schema. Raises ContractError."""
    try:
        return contract_rules.measure(schema)
    except contract_rules.SchemaError as error:
        raise ContractError(str(error)) from None


def _integer(text: str) -> int | float:
    """Return an integer; one of more digits than Python reads is infinite, as 1e400 is."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _retrieve_nothing(uri: str) -> Any:
    raise ValueError(f"{uri} is outside of the schema")


class Contracts:
    """The contracts of one broker's types. `by_type` is the contract that each payload of a type is checked by, None
    where there is none; `since` the time from which that holds."""

    def __init__(self, out: Effects) -> None:
        self.by_type: dict[str, Callable[[bytes], str | None]] = {}
        self.since: dict[str, float] = {}
        self._out = out
        self._compiled: dict[bytes, Contract] = {}
        self.known_parts = 0  # of these, as MAX_KNOWN counts them
        self._of_worker: dict[Link, Mapping[str, Contract | None]] = {}
        self._workers: dict[str, dict[Link, None]] = {}

    def read(self, schemas: Any, types: frozenset[str], link: Link) -> dict[str, Contract]:
        """Return the contracts in a link's HELLO (its option `schema`), by type. Raises ContractError, which names the
        type."""
        if schemas is None:
            return {}
        if not isinstance(schemas, dict) or not all(type(type_) is str for type_ in schemas):
            raise ContractError("schema is a map {type: JSON Schema}")
        found: dict[str, Contract] = {}
        total = parts = 0
        for type_ in sorted(types & schemas.keys()):
            try:
                text = msgspec.json.encode(schemas[type_], order="deterministic")
                total += len(text)
                if total > contract_rules.MAX_SCHEMAS_BYTES:
                    raise ContractError(f"all schemas have more than {contract_rules.MAX_SCHEMAS_BYTES} bytes together")
                contract = self._compiled.get(text)
                if contract is None:
                    schema = _read(text)  # as JSON, whatever MessagePack carried
                    measure = _measure(schema)
                    parts += measure.parts
                    if parts > contract_rules.MAX_PARTS:
                        raise ContractError(f"has too many parts or patterns: {contract_rules.MAX_PARTS} are allowed")
                    contract = self._admit(Contract(schema, text, measure), link, found.values())
                found[type_] = contract
            except (ContractError, TypeError, ValueError, RecursionError) as error:
                raise ContractError(f"the schema of {type_!r} {error}") from None
        return found

    def _admit(self, contract: Contract, link: Link, others: Collection[Contract]) -> Contract:
        """Return a new contract, which is known from now on; `others` are those of the same HELLO. Raises
        ContractError."""
        if self.known_parts + contract.weight > MAX_KNOWN // 2:
            self._forget_unused(others)
            if self.known_parts + self._weight_of(link, others) + contract.weight > MAX_KNOWN:
                raise ContractError("is one too many: the schemas of all handlers leave no more room")
        self._compiled[contract.text] = contract
        self.known_parts += contract.weight
        return contract

    def _weight_of(self, link: Link, others: Collection[Contract]) -> int:
        """Return the weight of the contracts that a link's party has now, and of others."""
        links = [each for each in self._of_worker if each.party == link.party] if link.party else [link]
        used = {contract for each in links for contract in self._of_worker.get(each, {}).values() if contract}
        return sum(contract.weight for contract in used.union(others))

    def _forget_unused(self, others: Collection[Contract]) -> None:
        used = {contract for each in self._of_worker.values() for contract in each.values() if contract}
        self._compiled = {contract.text: contract for contract in used.union(others)}
        self.known_parts = sum(contract.weight for contract in self._compiled.values())
        for type_ in [type_ for type_ in self.by_type if type_ not in self._workers]:
            del self.by_type[type_], self.since[type_]

    # --- workers ---

    def join(self, link: Link, name: str, types: frozenset[str], contracts: Mapping[str, Contract], now: float) -> None:
        """Take in the contracts of a worker that has said HELLO, once more perhaps."""
        before = self._of_worker.get(link)
        if before is not None and dict(before) == {type_: contracts.get(type_) for type_ in types}:
            return
        self.leave(link, now)
        self._of_worker[link] = {type_: contracts.get(type_) for type_ in types}
        for type_ in types:
            workers = self._workers.setdefault(type_, {})
            workers[link] = None
            if self._settle(type_, now) and len(workers) > 1:
                self._out.notice("contracts-differ", type=type_, name=name, contracts=len(self.of(type_)))

    def leave(self, link: Link, now: float) -> None:
        """Take in that a worker gets no more messages."""
        for type_ in self._of_worker.pop(link, ()):
            workers = self._workers[type_]
            del workers[link]
            if workers:
                self._settle(type_, now)
            else:
                del self._workers[type_]

    def of(self, type_: str) -> list[Contract | None]:
        """Return the different contracts of a type's workers; None stands for workers without one."""
        found = [self._of_worker[link][type_] for link in self._workers.get(type_, ())]
        return list(dict.fromkeys(found))

    def at(self, link: Link, type_: str) -> Contract | None:
        """Return a worker's contract of a type."""
        return self._of_worker.get(link, {}).get(type_)

    def _settle(self, type_: str, now: float) -> bool:
        """Set what payloads of a type are checked by; return whether its workers differ."""
        contracts = self.of(type_)
        known = [each for each in contracts if each is not None]
        if len(known) < len(contracts) or not 0 < len(known) <= MAX_DIFFERENT:
            self.by_type.pop(type_, None)
            self.since.pop(type_, None)
        else:
            self.by_type[type_] = known[0].fault if len(known) == 1 else _any_of(known)
            self.since[type_] = now
        return len(contracts) > 1


def _any_of(contracts: list[Contract]) -> Callable[[bytes], str | None]:
    def fault(body: bytes) -> str | None:
        wrong = None
        for contract in contracts:
            wrong = contract.fault(body)
            if wrong is None:
                return None
        return wrong

    return fault


# --- sentences ---


def _sentence(error: Any) -> str:
    """Return an error of the validator as path and sentence: `data.to[1]: expected a string`."""
    kind = error.kind.as_dict()
    name = error.kind.name
    if name in ("anyOf", "oneOf", "oneOfNotValid") and kind.get("context"):
        chosen = _of_branches([branch[0] for branch in error.kind.context if branch])
        if chosen is not None:
            return chosen
    place = _place(error.instance_path)
    if name == "required":
        return f"{place}.{kind['property']}: required, but missing"
    if name in ("additionalProperties", "falseSchema") and kind.get("unexpected"):
        return f"{place}.{kind['unexpected'][0]}: not a known field"
    if name == "type":
        return f"{place}: expected {_kinds(kind['types'])}"
    if name in ("enum", "const", "constant"):
        return f"{place}: not one of the values allowed here"
    limit = next((kind[key] for key in ("limit", "multiple_of") if key in kind), None)
    words = "".join(f" {char.lower()}" if char.isupper() else char for char in name)
    return f"{place}: not allowed ({words}{'' if limit is None else f' {limit}'})"


def _of_branches(errors: list[Any]) -> str | None:
    """Return the sentence for a value that fits none of several schemas: the types that were expected, or the error
    deepest in the value."""
    if not errors:
        return None
    deepest = max(errors, key=lambda error: len(error.instance_path))
    alike = [error for error in errors if error.instance_path == deepest.instance_path]
    if all(error.kind.name == "type" for error in alike):
        kinds = [kind for error in alike for kind in error.kind.as_dict()["types"]]
        return f"{_place(deepest.instance_path)}: expected {_kinds(list(dict.fromkeys(kinds)))}"
    return _sentence(next((error for error in alike if error.kind.name != "type"), deepest))


def _kinds(types: list[str]) -> str:
    named = [_KINDS.get(each, each) for each in types]
    return " or ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def _place(path: list[Any]) -> str:
    return "data" + "".join(f"[{step}]" if type(step) is int else f".{step}" for step in path)
