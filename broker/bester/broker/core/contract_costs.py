"""Costs of a schema: what the validator takes for a value, beside one visit of each subschema. Pure.

The validator compares numbers as arbitrary ones where either is no small integer, which takes a microsecond and more
for each constant of the schema: an `enum` of a few thousand and an array of numbers would hold the broker for minutes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

SMALL = 2**63
"""Integers below it are compared at once."""
WIDE = 2**53
"""Integers from it on may have the hash of a thousand others, with all of which `uniqueItems` compares them."""
WIDE_PAIRS = 32
"""The time of that, in comparisons."""
TINY, HUGE = 1e-9, 1e15
"""A `multipleOf` beyond them takes ten times as long as 0.01."""
LARGE_BITS = 128
"""Numbers of more bits than these, which large exponents are, take longer by the square."""
NESTED_STEPS = 6
"""Steps (see `contracts.MAX_STEPS`) of a value within an array or object that a value is compared with."""
DEPENDENT_STEPS = 3
FIELD_STEPS = 16
"""The same of a pattern for the names of fields."""
PAIRS = 8
"""Comparisons of an element by `uniqueItems`, which compares all pairs of fifteen elements."""
PATTERN_PARTS = 32
"""Time and memory of a compiled pattern, in those of a subschema: 0.4 ms and 150 KB at worst."""
PART_BYTES = 256
"""Bytes of a schema that take as much as a subschema: 10 µs."""


class Costs(NamedTuple):
    """Costs of a part of a schema at one place of a value. `visits` counts subschemas, `steps` other steps,
    `slow` the numbers that every number is compared with slowly, `numbers` those beside them that one with a fraction
    is, `bounds` those beside them that a large number is, `unique` is 1 where each large number of an array is compared
    with all others, `patterns` the patterns that a text is matched with."""

    visits: int = 0
    steps: int = 0
    slow: int = 0
    numbers: int = 0
    bounds: int = 0
    unique: int = 0
    patterns: int = 0

    def plus(self, other: Costs) -> Costs:
        """Return the sums."""
        return Costs(*(mine + others for mine, others in zip(self, other, strict=True)))

    def at_worst(self, other: Costs) -> Costs:
        """Return the greater of each."""
        return Costs(*map(max, self, other))

    def comparisons(self, found: Numbers) -> int:
        """Return how many comparisons of the numbers of a value are slow, at worst."""
        of_float = self.slow + self.numbers
        of_large = of_float + self.bounds + self.unique * found.many
        of_small = found.small * self.slow + found.wide * WIDE_PAIRS * self.unique
        return of_small + found.floats * of_float + found.large * of_large


class Numbers(NamedTuple):
    """Values in a value, and its numbers: small integers, some of which are `wide`, those with a fraction, and large
    ones, of which there are `many`, each counted in `large` by its time."""

    values: int
    small: int
    wide: int
    floats: int
    large: int
    many: int


def own_costs(node: dict[str, Any]) -> Costs:
    """Return the costs of a schema's own words, without those of its subschemas."""
    options = node["enum"] if isinstance(node.get("enum"), list) else []
    options = [*options, *([node["const"]] if "const" in node else [])]
    found = numbers_in(options)
    steps = NESTED_STEPS * found.values if any(isinstance(each, list | dict) for each in options) else 0
    slow, numbers, bounds = found.floats + found.large, found.small, 0
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        bound: Any = node.get(word)
        if is_slow(bound):
            slow += 10 if word == "multipleOf" and not TINY < bound < HUGE else 1
        elif bound is not None:
            bounds += 1
    unique = int(node.get("uniqueItems") is True)
    steps += 2 * PAIRS * unique
    numbers += PAIRS * unique
    for word in ("dependentRequired", "dependencies"):
        named = node.get(word)
        if isinstance(named, dict):
            names = sum(len(each) for each in named.values() if isinstance(each, list))
            steps += DEPENDENT_STEPS * (len(named) + names)
    named = node.get("patternProperties")
    fields = len(named) if isinstance(named, dict) else 0
    steps += FIELD_STEPS * fields
    return Costs(1, steps, slow, numbers, bounds, unique, int("pattern" in node) + fields)


def numbers_in(value: Any) -> Numbers:
    """Count the values and numbers in a value; the value itself is not counted where it is an array or object."""
    waiting, values, small, wide, floats, large, many = [value], -1, 0, 0, 0, 0, 0
    while waiting:
        each = waiting.pop()
        values += 1
        kind = type(each)
        if kind is list:
            waiting += each
        elif kind is dict:
            waiting += each.values()
        elif kind is int or kind is float:
            if not is_slow(each):
                small += 1
                wide += not -WIDE < each < WIDE
            elif kind is float and (not each or TINY < abs(each) < HUGE):
                floats += 1
            else:
                many += 1
                large += 1 + (_bits(each) // LARGE_BITS) ** 2
    return Numbers(values, small, wide, floats, large, many)


def is_slow(value: Any) -> bool:
    """Return whether a value is a number other than a small integer."""
    return type(value) is float or (type(value) is int and not -SMALL < value < SMALL)


def _bits(value: float) -> int:
    """Return the bits of a number written out, before or behind the point."""
    return value.bit_length() if isinstance(value, int) else abs(math.frexp(value)[1])
