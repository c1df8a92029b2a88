"""Values for messages: those that are meant, those that are nearly so, and those that nobody would think of.

All are drawn from one source of chance, so that the same seed draws the same values.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.messages import MAX_TOKEN, OPERATIONS, Operation

Row = list[Any]

NAMES = ("eve", "mallory", "carol", "bob", "s2", "n1", "10.0.0.9:5", "10.0.0.8:5", "h")
USERS = ("eve", "mallory", "carol")
"""User names of attackers. Honest users are not among them."""
OUTCOMES = (
    "delivered",
    "queued",
    "sent",
    "failed:overloaded",
    "failed:unreachable",
    "failed:expired",
    "failed:refused",
)
TYPES = ("a", "b", "shared", "slow", "none")
"""The types in attackers' messages. Those of honest parties are not among them."""
ODD_TEXTS = (
    "", " ", "a,b", " a", "a\n", "a\x1b[31m", "a\u202eb", "\x00", "\x85", "\u2028", "é", "日本", "\U0001f600", "ﬀ", "İ",
    "dummy", "builtin", "bester.", "bester.auth", "bester.outcome", "unconfirmed", "timeout", "delivered", "queued",
    "sent", "failed:", "failed:overloaded", "failed:nonsense", "../../etc/passwd", "/etc/passwd", "user/bob",
    "lane/s2/a", "s1", "s1/", "s1/x/1", "s1/b-x0/1", "s1/b-x0/1.0.0", "direct", "[::1]:5", "localhost:0", "h:99999",
    ":", "[:1", "-1", "null", "NaN", "'; DROP TABLE kept; --", "%s%n", "{}", "x" * 64, "x" * 65, "x" * 128, "x" * 129,
    "x" * 512, "x" * 513, "x" * 5000, "é" * 3000, "true", "1e999",
)  # fmt: skip
HALVES = ("\ud800", "a\udfffb", "\udcff")
"""Halves of surrogate pairs: MessagePack can hold them, UTF-8 cannot."""
INTEGERS = (
    0, 1, -1, 2, 7, 16, 63, 64, 65, 127, 128, 255, 256, 1000, 1024, 5001, 65_536, 131_073, 2**31 - 1, 2**31, 2**32,
    MAX_TOKEN - 1, MAX_TOKEN, MAX_TOKEN + 1, -MAX_TOKEN, -MAX_TOKEN - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 1e15, 2.0**53)
BODIES = (
    b"1", b'"hi"', b"null", b"{}", b"[]", b'{"to":["bob"],"text":"x"}', b"[" * 64 + b"]" * 64, b"[" * 65 + b"]" * 65,
    b"[" * 1000, b"", b" ", b"{", b'"', b"\xff", b'"\xed\xa0\x80"', b'"\\ud800"', b"1e999", b"-0", b"01", b"NaN",
    b"9" * 400, b"1,", b"\xef\xbb\xbf1", b'{"a":1,"a":2}', b'{"message":"m","outcome":"delivered"}',
    b'{"message":"s1/b-x0/1","outcome":"failed:expired"}', b"x" * 20_000, b'"' + b"x" * 20_000 + b'"', b'"\x00"',
    b"tru",
)  # fmt: skip
NO_MESSAGES = (
    b"\x91" * 100_000, b"\x81" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff" * 40,
    b"\xc1", b"\xd4\x05x", b"\xc7\x0c\xff" + bytes(12), b"\xd6\xff" + bytes(4), b"\xdb\x00\x00\x00\x02\xff\xfe",
    b"\x92\x01", b"\x93\x0b\xcf\xff\xff\xff\xff\xff\xff\xff\x00", b"\x82\xc0\x01\xc0\x02", b"\xca\x7f\xc0\x00\x00",
    b"[[3]]", b'{"op":1}', b"\x00" * 50, b"",
)  # fmt: skip
"""Bytes that stand where a message is meant."""
METAS = (
    "attempt", "dedup", "ttl_s", "outcome", "resent", "scope", "address", "server", "id", "root", "origin", "path",
    "lane", "again", "queued", "carried", "note", "reported", "unsent", "wait_s", "peer",
)  # fmt: skip
OPTIONS = ("types", "credit", "lease_ms", "order", "software", "version", "schema", "epoch", "listeners", "life",
           "heartbeat_ms", "max_body", "request_ms", "timeouts_ms")  # fmt: skip
QUESTIONS = (
    "listClients", "isClient", "serverInfo", "trace", "outcome", "deadList", "deadShow", "deadReplay", "deadDrop", "",
)  # fmt: skip
ARGUMENTS = ("id", "type", "limit", "as", "from")
CODES = ("overloaded", "hello-first", "unknown-op", "malformed", "not-allowed", "version", "nonsense", "timeout")
ROLES = ("handler", "bridge", "server", "operator", "", "admin")
COMMANDS = ("sendClients", "sendServers", "sendHandler", "sendAll", "")

_packer = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True)
PLAIN = (None, True, False)


class Odd:
    """Draws values; `chance` may be seeded anew at any time."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.pick = chance.choice

    def one_in(self, many: int) -> bool:
        """Return true once in so many times."""
        return int(self.chance.random() * many) == 0

    # --- values of any kind ---

    def integer(self) -> int:
        """Return an integer that MessagePack can hold."""
        if self.one_in(4):
            return self.pick(INTEGERS)
        return self.chance.randrange(-2, 40)

    def text(self) -> str:
        """Return a text; seldom half of a surrogate pair."""
        if self.one_in(60):
            return self.pick(HALVES)
        return self.pick(ODD_TEXTS) if self.one_in(3) else self.pick(NAMES)

    def type(self) -> str:
        """Return a message type, mostly one that may have a handler."""
        return self.text() if self.one_in(8) else self.pick(TYPES)

    def scalar(self) -> Any:
        """Return a value that contains no other."""
        kind = self.chance.randrange(7)
        if kind == 0:
            return self.pick(PLAIN)
        if kind == 1:
            return self.pick(FLOATS)
        if kind == 2:
            return self.pick(BODIES)
        if kind == 3 and self.one_in(4):
            return msgpack.ExtType(self.chance.randrange(128), b"x" * self.chance.randrange(9))
        return self.integer() if kind < 5 else self.text()

    def value(self, depth: int = 3) -> Any:
        """Return a value of any kind, nested a little."""
        kind = self.chance.randrange(8) if depth else 9
        if kind == 0:
            return [self.value(depth - 1) for _ in range(self.chance.randrange(4))]
        if kind == 1:
            keys = (self.text() if not self.one_in(9) else self.key() for _ in range(self.chance.randrange(4)))
            return {key: self.value(depth - 1) for key in keys}
        if kind == 2 and self.one_in(10):
            return self.nested(self.pick((62, 63, 64, 65, 66, 200)))
        return self.scalar()

    def key(self) -> Any:
        """Return a key of a map, as Python can have one."""
        return self.pick((0, b"k", None, 1.5, True, "k"))

    def nested(self, depth: int) -> Any:
        """Return lists or maps nested so deep."""
        value: Any = 1
        for _ in range(depth):
            value = {"k": value} if depth % 2 else [value]
        return value

    # --- meaningful values ---

    def body(self) -> Any:
        """Return a body: JSON text, an invalid text, or the number of an attachment."""
        if self.one_in(12):
            return self.pick((1, 2, 3, 0, -1, 2**40, "1", '{"a":"é"}', "\ud800"))
        return self.pick(BODIES) if self.one_in(2) else b'{"n":%d}' % self.chance.randrange(100)

    def command(self) -> Row:
        """Return a command of a reply."""
        targets: Any = [self.text() for _ in range(self.chance.randrange(4))]
        if self.one_in(40):
            targets = [f"u{n}" for n in range(self.pick((100, 3000, 10_001)))]
        body = b'"x"' if self.one_in(2) else self.body()
        row = [self.pick(COMMANDS[:3]) if not self.one_in(10) else self.pick(COMMANDS), targets, body]
        if row[0] == "sendHandler" and not self.one_in(5):
            row[1] = [self.type()]
        return [*row, self.pick((None, self.type()))] if self.one_in(3) else row

    def commands(self) -> list[Any]:
        """Return the commands of a reply."""
        return [self.command() for _ in range(self.pick((0, 1, 1, 1, 2, 5)))]

    def lane(self) -> Any:
        """Return the place of a message in a lane."""
        number = self.chance.randrange(60)
        return [self.pick(("e", "e", "f", "x" * 65, "")), number, self.pick((0, number, number, 30, number + 1, -1))]

    def meta(self) -> dict[Any, Any]:
        """Return the meta of a message."""
        return {key: self.of_meta(key) for key in self.chance.sample(METAS, self.chance.randrange(4))}

    def of_meta(self, key: str) -> Any:
        """Return a value for one key of a meta."""
        if self.one_in(4):
            return self.value()
        if key in ("attempt", "queued"):
            return self.pick((1, 2, 3, 2**40, -1, 0))
        if key in ("ttl_s", "wait_s"):
            return self.pick((0.2, 3, 60.0, 0, -1.0, 1e12, float("nan")))
        if key in ("outcome", "resent", "again", "carried", "reported", "unsent"):
            return True
        if key == "path":
            return [f"s2/{self.type()}" for _ in range(self.pick((0, 1, 5, 15, 16, 17)))]
        if key == "lane":
            return self.lane()
        if key == "address":
            return self.pick(("10.0.0.9", "10.0.0.10", "127.0.0.1", "unix", ""))
        if key == "scope":
            return self.pick(("server", "client"))
        if key == "server":
            return self.pick(("n1", "s2", self.text()))
        return f"s2/e-1/{self.chance.randrange(20)}" if key in ("id", "root", "dedup") else self.text()

    def options(self) -> dict[Any, Any]:
        """Return the options of a HELLO or WELCOME."""
        options: dict[Any, Any] = {}
        if not self.one_in(5):
            options["types"] = [self.type() for _ in range(self.pick((1, 1, 2, 4)))]
            options["credit"] = self.pick((1, 2, 5, 30))
        if self.one_in(4):
            options["epoch"] = self.pick(("x1", "x2", self.text()))
        if self.one_in(4):
            options["order"] = {self.type(): "user"}
        if self.one_in(4):
            options["lease_ms"] = self.pick((0, 500, 60_000, 600_001, -1))
        if self.one_in(6):
            options[self.pick(OPTIONS)] = self.value()
        return options

    def failed_rows(self) -> list[Any]:
        """Return the failures of a CONFIRM."""
        return [[self.integer(), self.integer(), self.text()] for _ in range(self.chance.randrange(4))]

    def argument(self) -> Any:
        """Return the argument of a question."""
        kind = self.chance.randrange(4)
        if kind == 0:
            return self.value()
        if kind == 1:
            return {key: self.value(1) for key in self.chance.sample(ARGUMENTS, 2)}
        return [self.integer(), f"s1/b-x0/{self.chance.randrange(20)}"] if kind == 2 else self.text()

    def field(self, name: str, spec: Operation, index: int) -> Any:
        """Return a value for one field of an operation, such as a party would send that knows the protocol."""
        draw = _FIELDS.get(name)
        if draw is not None:
            value = draw(self)
            if name == "meta" and self.one_in(2):
                value.update((key, self.of_meta(key)) for key in _USUAL.get(spec.op, ()))
            return value
        kinds = spec.fields[index]
        if kinds is None:
            return self.value()
        if type(None) in kinds and self.one_in(2):
            return None
        return self.text() if str in kinds else self.integer()

    # --- rows ---

    def row(self, spec: Operation | None = None) -> Row:
        """Return a message of an operation as a row for the packer; all its fields are of the right kind."""
        spec = spec or self.pick(OPERATIONS)
        names = spec.message._fields
        count = self.chance.randint(spec.required, len(names)) if self.one_in(3) else len(names)
        return [spec.op, *(self.field(names[index], spec, index) for index in range(count))]

    def mutated(self, row: Row) -> Any:
        """Return a row with a part replaced, left out, added, swapped or wrapped."""
        row = list(row)
        for _ in range(self.pick((1, 1, 2))):
            at, kind = self.chance.randrange(len(row) + 1), self.chance.randrange(6)
            if kind < 3 and at < len(row):
                row[at] = self.value()
            elif kind == 3:
                row.insert(at, self.value())
            elif kind == 4 and row:
                row.pop(min(at, len(row) - 1))
            elif kind == 5 and len(row) > 1:
                other = self.chance.randrange(len(row))
                at = min(at, len(row) - 1)
                row[at], row[other] = row[other], row[at]
        return self.pick((self.value(), {"op": row}, [row], tuple(row))) if self.one_in(30) else row

    def frames(self, rows: list[Any]) -> list[bytes]:
        """Return the frames of a batch of rows; seldom with a frame that no packer would write."""
        packed = [pack(row) for row in rows]
        if self.one_in(30):
            packed.insert(self.chance.randrange(len(packed) + 1), self.raw())
        first = array(len(packed)) + b"".join(packed)
        if self.one_in(25):
            first = self.spoiled(first)
        attached = [self.pick(BODIES) for _ in range(self.pick((0, 0, 0, 1, 2)))]
        return [] if self.one_in(500) else [first, *attached]

    def raw(self) -> bytes:
        """Return bytes that stand where a message is meant."""
        return self.pick(NO_MESSAGES)

    def spoiled(self, data: bytes) -> bytes:
        """Return bytes with some of them changed, cut off, doubled or put elsewhere."""
        spoiled = bytearray(data)
        for _ in range(self.pick((1, 1, 3, 9))):
            at, kind = self.chance.randrange(len(spoiled) + 1), self.chance.randrange(5)
            if kind == 0:
                del spoiled[at : at + self.chance.randrange(9)]
            elif kind == 1:
                spoiled[at:at] = self.chance.randbytes(self.chance.randrange(1, 5))
            elif kind == 2:
                spoiled[at:at] = spoiled[: self.chance.randrange(40)]
            elif at < len(spoiled):
                spoiled[at] = self.chance.randrange(256) if kind == 3 else spoiled[at] ^ 1 << self.chance.randrange(8)
        return bytes(spoiled[: self.chance.randrange(len(spoiled) + 1)] if self.one_in(5) else spoiled)


_USUAL: dict[int, tuple[str, ...]] = {
    12: ("id",), 24: ("address", "attempt"), 30: ("id", "lane"), 31: ("queued",), 33: ("reported", "unsent"),
}  # fmt: skip
"""Usual metas of an operation."""
_FIELDS: dict[str, Any] = {
    "session": lambda odd: odd.chance.randrange(1, 5) if not odd.one_in(10) else odd.integer(),
    "user": lambda odd: odd.pick(USERS) if not odd.one_in(10) else odd.pick(ODD_TEXTS),
    "password": lambda odd: "right" if not odd.one_in(4) else odd.text(),
    "address": lambda odd: odd.pick(("10.0.0.9", "10.0.0.10", "127.0.0.1", "", odd.text())),
    "outcome": lambda odd: odd.pick(OUTCOMES) if not odd.one_in(6) else odd.text(),
    "name": lambda odd: odd.pick(("s2", "s3", "eve", "mallory")) if not odd.one_in(5) else odd.text(),
    "version": lambda odd: 1 if not odd.one_in(20) else odd.integer(),
    "role": lambda odd: odd.pick(ROLES[:4]) if not odd.one_in(20) else odd.pick(ROLES),
    "type": Odd.type,
    "body": Odd.body,
    "options": Odd.options,
    "meta": Odd.meta,
    "commands": Odd.commands,
    "status": lambda odd: odd.pick((0, 0, 0, 1, 2, 3, -1)),
    "code": lambda odd: odd.pick(CODES),
    "question": lambda odd: odd.pick(QUESTIONS),
    "argument": Odd.argument,
    "recipients": lambda odd: {odd.text(): odd.text() for _ in range(odd.chance.randrange(3))},
    "targets": lambda odd: [[odd.integer(), odd.integer()] for _ in range(odd.chance.randrange(4))],
    "done": lambda odd: [odd.integer() for _ in range(odd.chance.randrange(4))],
    "failed": Odd.failed_rows,
}


def pack(row: Any) -> bytes:
    """Return a row in MessagePack; a row that the packer refuses becomes a word about that."""
    try:
        return bytes(_packer.pack(row))
    except (ValueError, TypeError, OverflowError):
        return b"\xa5never"


def array(length: int) -> bytes:
    """Return the header of an array."""
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2, "big")
