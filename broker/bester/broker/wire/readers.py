"""Readers of one message of a batch, which check every field, so that the result can be trusted.

`careful` is the rule: it reads any row and returns the message, or a `Malformed` with the fault. `READERS` holds, for
each op, a straight-line function made from the table at import; that function reads rows of the common shape (every
field present, bodies inlined as *bin*) and leaves all others to `careful`. Both must give the same result for the same
row; neither raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bester.broker.wire.messages import (
    ANY,
    BODY,
    INT,
    INT_OR_NIL,
    LIST,
    MAP,
    MAP_OR_NIL,
    MAX_TOKEN,
    OPERATIONS,
    TEXT,
    TEXT_OR_NIL,
    Command,
    Kinds,
    Malformed,
    Message,
    Operation,
)

Reader = Callable[[Any, Sequence[bytes]], Message | Malformed]
Fault = Callable[[Any], str | None]

VALUE_DEPTH = 64
"""Deepest nesting of free values (in meta, options, arguments): MessagePack libraries refuse to pack values that they
unpacked from a few hundred levels on, and such a value is passed on."""

_BY_OP: dict[int, Operation] = {row.op: row for row in OPERATIONS}
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_CONTAINERS = frozenset({list, dict})
_TOO_DEEP = f"nested deeper than {VALUE_DEPTH}"
_NAMES: dict[type[Any], str] = {
    int: "an integer", str: "str", bytes: "bin", list: "an array", dict: "a map", bool: "a boolean",
    float: "a floating-point number", type(None): "nil",
}  # fmt: skip
_STRING_KEYS = "keys are strings"
_BATCH = "frame 0 is an array of messages, so that a single message stands in an array, too: [[op, field, …]]"
_TARGETS = "an array of [target, session, …], all integers"
_FAILED = "an array of [serial, target, reason]"
_new = tuple.__new__


# --- values in maps and lists --------------------------------------------------------------------------------


def too_deep(value: Any) -> bool:
    """Return whether lists and maps nest deeper than VALUE_DEPTH; without recursion."""
    level = [value]
    for _ in range(VALUE_DEPTH - 1):
        level = [inner for outer in level for inner in _items(outer) if type(inner) in _CONTAINERS and inner]
        if not level:
            return False
    return any(type(inner) in _CONTAINERS for outer in level for inner in _items(outer))


def _items(value: Any) -> Iterable[Any]:
    if type(value) is list:
        return value
    return value.values() if type(value) is dict else ()


def _value(value: Any) -> str | None:
    if type(value) in _CONTAINERS:
        return _TOO_DEEP if too_deep(value) else None
    return None if type(value) in _PLAIN else "extension types are not used"


def _keys(value: dict[Any, Any]) -> str | None:
    for key in value:
        if type(key) is not str:
            return _kind(key, TEXT, _STRING_KEYS)
    return None


def _meta(value: dict[Any, Any]) -> str | None:
    for key, item in value.items():
        if type(key) is not str:
            return _kind(key, TEXT, _STRING_KEYS)
        if type(item) in _CONTAINERS and too_deep(item):
            return _TOO_DEEP
    return None


def _recipients(value: dict[Any, Any]) -> str | None:
    for name, outcome in value.items():
        if type(name) is not str or type(outcome) is not str:
            return "a map of strings to strings"
    return None


def _targets(value: list[Any]) -> str | None:
    for target in value:
        if type(target) is not list or len(target) < 2:
            return _TARGETS
        for number in target:
            if type(number) is not int:
                return _TARGETS
    return None


def _done(value: list[Any]) -> str | None:
    for number in value:
        if type(number) is not int:
            return "an array of integers"
    return None


def _failed(value: list[Any]) -> str | None:
    for row in value:
        if type(row) is not list or len(row) != 3:
            return _FAILED
        serial, target, reason = row
        if type(serial) is not int or type(target) is not int or type(reason) is not str:
            return _FAILED
    return None


def _steps(value: list[Any]) -> str | None:
    for step in value:
        if type(step) is not dict:
            return "an array of maps"
        fault = _meta(step)
        if fault is not None:
            return fault
    return None


_INSIDE: dict[str, Fault] = {
    "options": _meta,
    "meta": _meta,
    "argument": _value,
    "value": _value,
    "recipients": _recipients,
    "targets": _targets,
    "done": _done,
    "failed": _failed,
    "steps": _steps,
}


def _inside(spec: Operation, field: str) -> Fault | None:
    # A REQUEST comes from a broker, which has checked the meta, and goes to a handler, which does not pass the meta on.
    return _keys if (spec.op, field) == (10, "meta") else _INSIDE.get(field)


# --- the rule --------------------------------------------------------------------------------------------------


def careful(row: Any, frames: Sequence[bytes]) -> Message | Malformed:
    """Read one message of any shape; `frames` are those of its batch, for attached bodies."""
    if type(row) is not list:
        return Malformed("malformed", f"{kind_of(row)} where a message is meant; {_BATCH}")
    if not row or type(row[0]) is not int:
        return Malformed("malformed", "a message is an array [op, field, …] with an integer op")
    spec = _BY_OP.get(row[0])
    if spec is None:
        return Malformed("unknown-op", f"no operation {row[0]}", row[0] if abs(row[0]) <= MAX_TOKEN else None)
    values = row[1 : len(spec.fields) + 1]
    if spec.rare and len(values) == len(spec.fields) and type(values[-1]) not in (spec.fields[-1] or ()):
        values.pop()  # a private field of a peer, older than the rare field
    if len(values) < spec.required:
        return refuse(spec, row, f"{spec.required} fields needed, {len(values)} given")
    for index, value in enumerate(values):
        fault = _field(spec, index, value)
        if fault is not None:
            return refuse(spec, row, f"{spec.message._fields[index]}: {fault}")
    try:
        if spec.body is not None:
            values[spec.body] = _body(values[spec.body], frames)
        elif spec.commands is not None:
            values[spec.commands] = [_command(item, frames) for item in values[spec.commands]]
    except ValueError as error:
        return refuse(spec, row, str(error))
    message: Message = spec.message(*values)
    return message


def kind_of(value: Any) -> str:
    """Return MessagePack's name of a value's kind."""
    return _NAMES.get(type(value), "an extension type")


def _kind(value: Any, kinds: Kinds, problem: str) -> str:
    """Return the error for a value of the wrong kind; a value packed as bytes is most often meant as text."""
    wanted = " or ".join(sorted(_NAMES[kind] for kind in kinds))
    hint = "; pack texts as str, not as bytes" if type(value) is bytes and str in kinds else ""
    return f"{problem}: {kind_of(value)} where {wanted} is meant{hint}"


def _field(spec: Operation, index: int, value: Any) -> str | None:
    kinds = spec.fields[index]
    if kinds is not None and type(value) not in kinds:
        return _kind(value, kinds, "of the wrong type")
    if type(value) is int and not -MAX_TOKEN <= value <= MAX_TOKEN:
        return "integers stay below 2^53"
    inside = _inside(spec, spec.message._fields[index])
    return None if inside is None or value is None else inside(value)


def refuse(spec: Operation, row: list[Any], text: str) -> Malformed:
    """Return the refusal of a row, with its token, if any, so that the requester can be informed."""
    token = row[1] if len(row) > 1 and type(row[1]) is int and 0 <= row[1] <= MAX_TOKEN and spec.op >= 10 else None
    return Malformed("malformed", f"{spec.message.__name__.upper()}: {text}", spec.op, token)


def unreadable(row: Any) -> Malformed | None:
    """Refuse a leniently unpacked row that holds values which MessagePack allows and BFP does not.

    Such values are strings that are not UTF-8 (unpacked with surrogate escapes), map keys that are not strings, and
    extension types. Return None for a row without such values. Without recursion; slow.
    """
    rest: list[Any] = [row]
    while rest:
        value = rest.pop()
        if type(value) is dict:
            if not all(type(key) in (str, bytes) for key in value):
                return refuse_row(row, "map keys are strings")
            rest.extend(value)
        elif type(value) is str and not value.isascii() and not _is_unicode(value):
            return refuse_row(row, "strings are UTF-8")
        elif type(value) not in _PLAIN and type(value) is not list:
            return refuse_row(row, "extension types are not used")
        rest.extend(_items(value))
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_row(row: Any, text: str) -> Malformed:
    """Return the refusal of a row of any shape."""
    spec = _BY_OP.get(row[0]) if type(row) is list and row and type(row[0]) is int else None
    return Malformed("malformed", text) if spec is None else refuse(spec, row, text)


def _body(value: bytes | str | int, frames: Sequence[bytes]) -> bytes:
    if type(value) is bytes:
        return value
    if type(value) is str:
        return value.encode()
    assert type(value) is int
    if not 1 <= value < len(frames):
        raise ValueError(f"the body is attachment {value}, but there are {len(frames) - 1}")
    return frames[value]


def _command(row: Any, frames: Sequence[bytes]) -> Command:
    if type(row) is not list or len(row) < 3:
        raise ValueError("a command is [command, targets, body] or [command, targets, body, type]")
    name, targets, body = row[:3]
    if type(name) is not str:
        raise ValueError(_kind(name, TEXT, "a command's name is a string"))
    if type(targets) is not list:
        raise ValueError(_kind(targets, LIST, "a command's targets are an array of strings"))
    for target in targets:
        if type(target) is not str:
            raise ValueError(_kind(target, TEXT, "a command's targets are an array of strings"))
    if type(body) not in BODY:
        raise ValueError(_kind(body, BODY, "a command's body is JSON text or the number of an attachment"))
    type_ = row[3] if len(row) > 3 else None
    if type_ is not None and type(type_) is not str:
        raise ValueError(_kind(type_, TEXT_OR_NIL, "a command's type is a string"))
    return Command(name, targets, _body(body, frames), type_)


# --- fast readers --------------------------------------------------------------------------------------------


def _plain_commands(rows: list[Any]) -> list[Command] | None:
    """Read commands whose bodies are all inlined as *bin*; return None for any other."""
    commands: list[Command] = []
    for row in rows:
        if type(row) is not list or not 3 <= len(row) <= 4:
            return None
        name, targets, body, type_ = row if len(row) == 4 else (*row, None)
        if type(name) is not str or type(targets) is not list or type(body) is not bytes:
            return None
        if type_ is not None and type(type_) is not str:
            return None
        for target in targets:
            if type(target) is not str:
                return None
        commands.append(_new(Command, (name, targets, body, type_)))
    return commands


_RANGE = f"{-MAX_TOKEN} <= {{0}} <= {MAX_TOKEN}"
_TESTS: dict[frozenset[Any] | None, str] = {
    INT: "type({0}) is int and " + _RANGE,
    TEXT: "type({0}) is str",
    TEXT_OR_NIL: "({0} is None or type({0}) is str)",
    INT_OR_NIL: "({0} is None or type({0}) is int and " + _RANGE + ")",
    BODY: "type({0}) is bytes",
    MAP: "type({0}) is dict",
    MAP_OR_NIL: "({0} is None or type({0}) is dict)",
    LIST: "type({0}) is list",
    ANY: "(type({0}) is not int or " + _RANGE + ")",
}


def _compile(spec: Operation) -> Reader:
    """Compile the reader of one operation: the checks of `careful` in one expression, the cheapest first. A row with
    its rare field is left to `careful`."""
    fields: tuple[str, ...] = spec.message._fields
    kinds_of = spec.fields[:-1] if spec.rare else spec.fields
    names = [f"{field}_" for field in fields[: len(kinds_of)]]
    tests = ["type(op) is int"]
    last: list[str] = []
    namespace: dict[str, Any] = {"new": _new, "message": spec.message, "careful": careful, "commands": _plain_commands}
    for index, (name, kinds) in enumerate(zip(names, kinds_of, strict=True)):
        tests.append(_TESTS[kinds].format(name))
        inside = _inside(spec, fields[index])
        if index == spec.commands:
            last.append(f"({name} := commands({name})) is not None")
        elif inside is not None:
            namespace[f"in_{name}"] = inside
            last.append(f"(not {name} or in_{name}({name}) is None)")
    values = "".join(f"{name}, " for name in names)
    made = f"{values}{'None, ' if spec.rare else ''}"
    made = f"new(message, ({made}))" if issubclass(spec.message, tuple) else f"message({made})"
    source = (
        "def read(row, frames):\n"
        f"    if type(row) is list and len(row) == {len(names) + 1}:\n"
        f"        op, {values}= row\n"
        f"        if {' and '.join(tests + last)}:\n"
        f"            return {made}\n"
        "    return careful(row, frames)\n"
    )
    exec(compile(source, f"<reader of {spec.message.__name__}>", "exec"), namespace)  # noqa: S102 (of the table alone)
    reader: Reader = namespace["read"]
    return reader


READERS: dict[int, Reader] = {row.op: _compile(row) for row in OPERATIONS}
"""Reader of each op; takes the whole row (op included) and the frames of its batch."""
