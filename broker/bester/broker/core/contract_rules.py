"""Rules that keep a handler's JSON Schema from harming the broker that checks messages by it. Pure.

A schema is a stranger's program. Its size is bounded, it refers to itself alone, and checking a value must take a time
in proportion to the value: neither references that multiply nor recursion that branches at one place pass. Patterns
are matched by an engine that takes linear time (see `contracts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from bester.broker.core.contract_costs import PART_BYTES, PATTERN_PARTS, Costs, own_costs

MAX_SCHEMA_BYTES = 64 * 1024
"""Bytes of one schema as JSON: a hundred times what a program's types usually make."""
MAX_SCHEMAS_BYTES = 1024 * 1024
"""Bytes of all schemas of one HELLO: they are compiled while the broker waits."""
MAX_PARTS = 8_192
"""Subschemas of all schemas of one HELLO, a pattern counted as 32 and 256 bytes as one, some 10 µs each."""
MAX_VISITS = 4_096
"""Subschemas applied to one place of a value, at worst; usual schemas stay below fifty, recursive ones below 500."""
MAX_DEPTH = 64
"""Nesting of a value. What a subschema leads to that leads back to itself may be applied at each level."""
MAX_REPEAT = 1_000
"""Counted repetition in a pattern; larger ones make automata of megabytes."""

UNSUPPORTED = ("$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")
_SAME_PLACE = ("allOf", "anyOf", "oneOf")
_SAME_PLACE_ONE = ("not", "if", "then", "else")
_NAMED = ("dependentSchemas", "dependencies")

Edge = tuple[int, str]
"""A subschema that is applied, and its group: of one group only one applies to the same place."""


class SchemaError(ValueError):
    """A schema that is refused; the text says why."""


def fault(schema: Any) -> str | None:
    """Return why a schema is refused, None where it is not."""
    try:
        measure(schema)
    except SchemaError as error:
        return str(error)
    return None


class Measure(NamedTuple):
    """Costs of a schema at one place of a value, at worst, and the `parts` of the schema, as MAX_PARTS counts them."""

    costs: Costs
    parts: int


def measure(schema: Any) -> Measure:
    """Measure a schema. Raises SchemaError."""
    if isinstance(schema, bool):
        return Measure(Costs(visits=1), 1)
    if not isinstance(schema, dict):
        raise SchemaError("is no JSON Schema: an object is expected")
    size = len(msgspec.json.encode(schema))
    if size > MAX_SCHEMA_BYTES:
        raise SchemaError(f"has {size} bytes, and {MAX_SCHEMA_BYTES} are allowed")
    graph = _Graph(schema)
    if graph.fault is not None:
        raise SchemaError(graph.fault)
    patterns = sum(own.patterns for own in graph.own)
    return Measure(_costs(graph), len(graph.own) + PATTERN_PARTS * patterns + size // PART_BYTES)


def has_branches(schema: Any) -> bool:
    """Return whether a schema has an `anyOf` or `oneOf` anywhere; also where it merely names a field so."""
    return any(b'"%b"' % word in msgspec.json.encode(schema) for word in (b"anyOf", b"oneOf"))


class _Graph:
    """The subschemas of a schema, numbered, and which of them each applies to the value."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._numbers: dict[int, int] = {}
        self.own: list[Costs] = []
        self.edges: list[list[Edge]] = []
        self.same_place: list[set[int]] = []
        self.fault: str | None = None
        waiting: list[Any] = [root]
        self._number(root)
        while waiting and self.fault is None:
            node = waiting.pop()
            number = self._numbers[id(node)]
            for child, group, is_same in self._applied(node, is_root=node is root):
                if not isinstance(child, dict):
                    continue
                if id(child) not in self._numbers:
                    self._number(child)
                    waiting.append(child)
                self.edges[number].append((self._numbers[id(child)], group))
                if is_same:
                    self.same_place[number].add(self._numbers[id(child)])

    def _number(self, node: dict[str, Any]) -> None:
        self._numbers[id(node)] = len(self.edges)
        self.own.append(own_costs(node))
        self.edges.append([])
        self.same_place.append(set())

    def _applied(self, node: dict[str, Any], *, is_root: bool) -> Iterator[tuple[Any, str, bool]]:
        """Yield each subschema of a node, its group, and whether it applies to the same place as the node."""
        for word in UNSUPPORTED:
            if word in node:
                self.fault = f"uses {word}, which is not supported; leave it out"
                return
        if "$id" in node and not is_root:
            self.fault = "names a part of itself by $id; refer to the part as #/$defs/NAME"
            return
        if isinstance(node.get("pattern"), str) and _repeats(node["pattern"]):
            self.fault = f"has a pattern that repeats more than {MAX_REPEAT} times; use maxLength"
            return
        if "$ref" in node:
            target = self._target(node["$ref"])
            if self.fault is not None:
                return
            yield target, "$ref", True
        for word in _SAME_PLACE:
            for index, child in enumerate(_list(node.get(word))):
                yield child, f"{word}/{index}", True
        for word in _SAME_PLACE_ONE:
            yield node.get(word), word, True
        for word in _NAMED:
            for key, child in _map(node.get(word)).items():
                yield child, f"{word}/{key}", True
        yield from self._below(node)

    def _below(self, node: dict[str, Any]) -> Iterator[tuple[Any, str, bool]]:
        """Yield the subschemas that apply to the fields and elements of the node's value."""
        for child in _map(node.get("properties")).values():
            yield child, "field", False
        yield node.get("additionalProperties"), "field", False
        for key, child in _map(node.get("patternProperties")).items():
            if _repeats(key):
                self.fault = f"has a pattern that repeats more than {MAX_REPEAT} times"
                return
            yield child, f"pattern/{key}", False
        for child in (*_list(node.get("items")), *_list(node.get("prefixItems"))):
            yield child, "element", False
        yield node.get("items"), "element", False
        yield node.get("additionalItems"), "element", False
        yield node.get("contains"), "contains", False
        yield node.get("propertyNames"), "names", False

    def _target(self, ref: Any) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            self.fault = f"refers to {str(ref)[:80]!r}; a $ref leads to a part of the schema itself, as #/$defs/NAME"
            return None
        found: Any = self._root
        for step in ref.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                self.fault = f"refers to {ref[:80]!r}, which is not there"
                return None
        return found


def _costs(graph: _Graph) -> Costs:
    """Return the costs of a graph. Raises SchemaError where checking a value could take too long."""
    costs: list[Costs] = [Costs()] * len(graph.edges)
    component_of: dict[int, int] = {}
    for number, members in enumerate(_components(graph.edges)):  # each after those that it leads to
        component_of.update(dict.fromkeys(members, number))
        inside = set(members)
        is_loop = len(members) > 1 or any(child in inside for child, _ in graph.edges[members[0]])
        if is_loop:
            if _returns_at_one_place(graph.same_place, inside):
                raise SchemaError("leads back to itself at the same place, so that a check would never end")
            for node in members:
                if len({group for child, group in graph.edges[node] if child in inside}) > 1:
                    raise SchemaError(
                        "leads back to itself in several ways at once, so that a check could take for ever"
                    )
        cost = Costs()
        for node in members:
            cost = cost.at_worst(graph.own[node].plus(_sum(graph.edges[node], inside, costs)))
        if is_loop:
            cost = cost._replace(visits=MAX_DEPTH * cost.visits)
        if cost.visits > MAX_VISITS:
            raise SchemaError(f"applies more than {MAX_VISITS} parts to one place; make it simpler")
        for node in members:
            costs[node] = cost
    return costs[0]


def _sum(edges: list[Edge], inside: set[int], costs: list[Costs]) -> Costs:
    """Return the costs of what a node applies: of each group the dearest."""
    dearest: dict[str, Costs] = {}
    for child, group in edges:
        if child not in inside:
            dearest[group] = dearest.get(group, Costs()).at_worst(costs[child])
    total = Costs()
    for each in dearest.values():
        total = total.plus(each)
    return total


def _returns_at_one_place(same_place: list[set[int]], inside: set[int]) -> bool:
    """Return whether some of these nodes lead back to themselves without a step into the value."""
    edges: list[list[Edge]] = [
        [(child, "") for child in same_place[node] if child in inside] for node in sorted(inside)
    ]
    names = {node: number for number, node in enumerate(sorted(inside))}
    local: list[list[Edge]] = [[(names[child], group) for child, group in row] for row in edges]
    return any(
        len(members) > 1 or any(child == members[0] for child, _ in local[members[0]]) for members in _components(local)
    )


def _components(edges: list[list[Edge]]) -> Iterator[list[int]]:
    """Yield the strongly connected components, each after those that it leads to (Tarjan, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for start in range(len(edges)):
        if start in order:
            continue
        work = [(start, iter(edges[start]))]
        order[start] = low[start] = len(order)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, children = work[-1]
            for child, _ in children:
                if child not in order:
                    order[child] = low[child] = len(order)
                    stack.append(child)
                    on_stack.add(child)
                    work.append((child, iter(edges[child])))
                    break
                if child in on_stack:
                    low[node] = min(low[node], order[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    members: list[int] = []
                    while not members or members[-1] != node:
                        members.append(stack.pop())
                        on_stack.discard(members[-1])
                    yield members


def _repeats(pattern: str) -> bool:
    """Return whether a pattern has a counted repetition above the bound, nested ones multiplied."""
    product = 1
    for part in pattern.split("{")[1:]:
        for number in part.partition("}")[0].split(","):
            if number.strip().isdecimal():
                product *= max(1, int(number.strip()[:9]))
    return product > MAX_REPEAT


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
