"""Frames of the native protocol: those that are meant, those that are nearly so, and bytes that are none."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.fuzz.odd import ODD_TEXTS, Odd

USERS = ("eve", "mallory", "carol")
TYPES = (
    "echo",
    "hold",
    "refuse",
    "none",
    "dummy",
    "builtin",
    "bester.outcome",
    "bester.",
    "x" * 128,
    "x" * 129,
    "",
    "\0",
)
NUMBERS = (
    "0", "-0", "1", "-1", "1e999", "-1e-999", "0.1", "1E+5", "18446744073709551616", "9" * 400, "2147483648", "1.0",
    "01", "+1", ".5", "0x10", "NaN", "Infinity", "-",
)  # fmt: skip
TEXTS = (
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\uD83D\\uDE00"', '"\\x"', '"', '"\\', '"a\nb"', '""', '"\u2028"',
    "'a'",
)  # fmt: skip
ODD_JSON = (
    "null", "true", "tru", "[]", "{}", "[1,]", '{"a":1,}', '{"a":1,"a":2}', "{1:2}", '{"a"}', "[" * 64 + "]" * 64,
    "[" * 65 + "]" * 65, "[" * 3000, '{"a":' * 64 + "1" + "}" * 64, '{"a":' * 65 + "1" + "}" * 65, "", " ", "1 2", "//",
    "/**/1", '{"a":1}}', "[[[[1]]]]", '"' + "x" * 900 + '"',
)  # fmt: skip
LENGTHS = (0, 1, 3, 4, 127, 128, 255, 256, 2001, 4001, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
SPOILT = (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\0", b"\xef\xbb\xbf", b"\x1b[2J")


def frame(body: bytes, length: int | None = None) -> bytes:
    """Return a frame; `length`: a false length for its header."""
    return struct.pack("<I", len(body) if length is None else length) + body


class OddJson:
    """Draws frames by the chance of an `Odd`."""

    def __init__(self, odd: Odd) -> None:
        self.odd = odd
        self.ids: list[str] = []
        """Ids of messages and results that were seen, for acknowledgements and questions."""

    def text(self) -> str:
        """Return JSON text of any kind, mostly sound."""
        odd = self.odd
        kind = odd.chance.randrange(12)
        if kind == 0:
            return odd.pick(NUMBERS)
        if kind == 1:
            return odd.pick(TEXTS)
        if kind == 2:
            return odd.pick(ODD_JSON)
        if kind == 3:
            return "[" + ",".join(self.text() for _ in range(odd.chance.randrange(4))) + "]"
        if kind == 4:
            return self.object({odd.pick(ODD_TEXTS)[:40]: self.text() for _ in range(odd.chance.randrange(3))})
        return odd.pick(("1", "null", '"hi"', '{"to":["bob"]}', "[1,2]", "true", self.string()))

    def string(self) -> str:
        """Return a JSON string."""
        text = self.odd.pick(ODD_TEXTS)
        return json.dumps(text[:600], ensure_ascii=self.odd.one_in(2))

    def object(self, fields: dict[str, str]) -> str:
        """Return a JSON object whose values are JSON text; seldom with a key twice, or in another order."""
        rows = [f"{json.dumps(key)}:{value}" for key, value in fields.items()]
        if rows and self.odd.one_in(20):
            rows.append(self.odd.pick(rows))
        if self.odd.one_in(6):
            self.odd.chance.shuffle(rows)
        return "{" + ",".join(rows) + "}"

    def own(self, key: str, usual: str) -> dict[str, str]:
        """Return a field with its usual value; seldom with another, or not at all."""
        if self.odd.one_in(25):
            return {}
        return {key: self.text() if self.odd.one_in(15) else usual}

    def payload(self, type_: str, data: str) -> str:
        """Return a message's payload."""
        odd = self.odd
        id_ = json.dumps(odd.pick(("a", "b", "auth_special", "", "é", "x" * 300)))
        fields = {**self.own("type", json.dumps(type_)), **self.own("data", data), **self.own("id", id_)}
        if odd.one_in(4):
            fields |= self.own("dedup", json.dumps(odd.pick(("k1", "k2", "x" * 64, "x" * 65, ""))))
        if odd.one_in(6):
            fields |= self.own("ttl_s", odd.pick(("5", "0.5", "0", "-1", "1e12", "null")))
        if odd.one_in(6):
            fields |= self.own("outcome", odd.pick(("true", "false")))
        if odd.one_in(6):
            fields |= self.own("resent", odd.pick(("true", "false")))
        return self.object(fields)

    def later(self) -> bytes:
        """Return the body of a frame behind the first one."""
        odd = self.odd
        kind = odd.chance.randrange(8)
        if kind == 0:
            return self.top({"payload": self.payload("builtin", self.object({"command": self.command()}))})
        if kind == 1:
            return self.top({"payload": self.payload(odd.pick(TYPES), self.text())})
        return self.top({**self.own("header", "null"), "payload": self.payload(odd.pick(TYPES[:4]), self.text())})

    def command(self) -> str:
        """Return a command for the server itself."""
        odd = self.odd
        kind = odd.pick(("ack", "ack", "outcome", "outcome", "close", "none"))
        ids = [odd.pick(self.ids) if self.ids and not odd.one_in(4) else odd.pick(ODD_TEXTS)[:200] for _ in range(3)]
        data = json.dumps(ids if kind == "ack" else ids[0])
        if odd.one_in(30):
            data = json.dumps(["x"] * odd.pick((8, 9, 100)))
        return self.object({**self.own("type", json.dumps(kind)), **self.own("data", data)})

    def first(self) -> bytes:
        """Return the body of a first frame: a client's, or another server's."""
        odd = self.odd
        if odd.one_in(4):
            header = {"scope": '"server"'}
            for key in ("server", "id", "root", "origin", "path", "ttl_s", "lane", "again"):
                if odd.one_in(3):
                    usual = {"path": '["s2/a"]', "ttl_s": "5", "lane": '["e",5,0]', "again": "true"}
                    header |= self.own(key, usual.get(key, json.dumps(odd.pick(("s2", "s2/e-1/5")))))
            return self.top({"header": self.object(header), "payload": self.payload(odd.pick(TYPES), self.text())})
        password = odd.pick(("right", "right", "right", "wrong", "", "\0", "x" * 200))
        login = {**self.own("username", json.dumps(odd.pick(USERS))), **self.own("password", json.dumps(password))}
        header = {**self.own("scope", '"client"'), **self.own("authentication", self.object(login))}
        if odd.one_in(3):
            header |= self.own("ack", "true")
        payload = '{"data":null,"type":"dummy"}'
        if odd.one_in(3):
            payload = self.payload(odd.pick(TYPES), self.text())
        return self.top({"header": self.object(header), **self.own("payload", payload)})

    def top(self, fields: dict[str, str]) -> bytes:
        """Return a frame's body; seldom as something that is no object, or no JSON, or no text."""
        odd = self.odd
        text = self.text() if odd.one_in(60) else self.object(fields)
        if odd.one_in(80):
            text += odd.pick((" ", "\n", "x", "}", "\0", "1"))
        body = text.encode("utf-8", "surrogatepass")
        if odd.one_in(40):
            at = odd.chance.randrange(len(body) + 1)
            body = body[:at] + odd.pick(SPOILT) + body[at:]
        return odd.spoiled(body) if odd.one_in(60) else body

    def stream(self, first: bool) -> bytes:
        """Return the bytes that a peer may write: frames, mostly."""
        odd = self.odd
        frames = [self.first()] if first else []
        frames += [self.later() for _ in range(odd.pick((0, 1, 1, 2, 5) if first else (1, 1, 2, 5)))]
        out = b"".join(frame(body) for body in frames)
        if odd.one_in(60):
            out += frame(self.later(), odd.pick(LENGTHS))
        if odd.one_in(80):
            out += odd.chance.randbytes(odd.chance.randrange(1, 60))
        return odd.spoiled(out) if odd.one_in(80) else out

    def pieces(self, data: bytes) -> list[bytes]:
        """Return data in pieces, as the network may bring the bytes."""
        odd = self.odd
        if not odd.one_in(3) or not data:
            return [data]
        if len(data) < 300 and odd.one_in(4):
            return [data[at : at + 1] for at in range(len(data))]
        cuts = sorted(odd.chance.randrange(len(data) + 1) for _ in range(odd.chance.randrange(1, 6)))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read_frames(data: bytes) -> list[Any]:
    """Return the frames as a program reads them that knows nothing of Bester: raises where one is no JSON object."""
    frames, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        body = data[at + 4 : at + 4 + length]
        if len(body) != length:
            raise ValueError(f"a frame of {length} bytes is cut off after {len(body)}")
        frames.append(json.loads(body.decode()))
        at += 4 + length
    return frames
