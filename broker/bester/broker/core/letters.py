"""Dead letters: messages that were given up although somebody could still want them; and their second chance.

A letter holds the body, the reason and the way the message had come. It stays until an operator drops it, or until it
was replayed and that ended well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bester.broker.core.boxes import Boxes
from bester.broker.core.cases import Case, Kind, Reports, failed
from bester.broker.core.parcels import Parcel
from bester.broker.core.values import Link, Outbox, Settings
from bester.broker.kept import Bury, Dead, Entry, Letter, Unbury, lane
from bester.broker.wire.messages import Answer, Ask, Message, is_reserved

MAX_LISTED = 10_000
MAX_REPLAYED = 1_000
"""Letters of one question: a turn of the loop has an end."""
NOWHERE = Link("direct", b"dead letters")
QUESTIONS = frozenset({"deadList", "deadShow", "deadReplay", "deadDrop"})
NEVER_KEPT = "bester.auth"
"""What handlers of this type are given holds passwords."""


class _Second:
    """Watches a replayed letter: it is dropped when all went well."""

    __slots__ = ("_letters", "_out", "id")

    def __init__(self, id_: str, out: Outbox, letters: set[str]) -> None:
        self.id = id_
        self._out = out
        self._letters = letters

    def ended(self, case: Case, answer: Message | None) -> None:
        """The replay is over."""
        self._letters.discard(self.id)
        if case.reason is None:
            self._out.writes.append(Unbury(self.id))


class Letters:
    """The dead letters of a broker. `enter` takes a parcel on its way again."""

    def __init__(
        self, settings: Settings, boxes: Boxes, reports: Reports, out: Outbox, enter: Callable[[Parcel, float], None]
    ) -> None:
        self._settings = settings
        self._boxes = boxes
        self._reports = reports
        self._out = out
        self._enter = enter
        self._replayed: set[str] = set()  # those under way

    def bury(self, parcel: Parcel, reason: str, now: float) -> None:
        """Give a message up, for this reason."""
        if parcel.type == NEVER_KEPT:
            return
        meta = {
            "root": parcel.root, "origin": parcel.origin, "scope": parcel.scope, "user": parcel.user,
            "peer": parcel.peer, "path": parcel.path, "attempts": parcel.attempt,
            "bytes": len(parcel.body),
        }  # fmt: skip
        letter = Letter(parcel.id, parcel.type, parcel.body, reason, self._boxes.wall(now), meta)
        self._out.writes.append(Bury(letter))

    def ask(self, link: Link, ask: Ask) -> Answer | None:
        """An operator asks about them; None: the answer comes by `found`."""
        argument, question = ask.argument, ask.question
        wanted: Any = {"id": argument} if question == "deadShow" else {} if argument is None else argument
        if not _sound(wanted) or (question == "deadShow" and argument is None):
            return Answer(ask.token, 1, None)  # what cannot be read is not taken for `all of them`
        id_, type_, limit = wanted.get("id"), wanted.get("type"), wanted.get("limit")
        most = MAX_REPLAYED if question == "deadReplay" else MAX_LISTED
        limit = most if limit is None else min(limit, most)
        why = {"question": question, "as": wanted.get("as")}
        bodies = question in ("deadShow", "deadReplay")
        self._out.reads.append(Dead(id_, type_, limit, link, ask.token, why, bodies))
        return None

    def found(self, dead: Dead, letters: Sequence[Letter], now: float) -> Answer:
        """The letters asked for: what the operator is answered."""
        question = dead.why["question"]
        if question == "deadList":
            return Answer(dead.token, 0, [_line(letter) for letter in letters])
        if question == "deadShow":
            return Answer(dead.token, 0, _whole(letters[0])) if letters else Answer(dead.token, 1, None)
        if question == "deadDrop":
            for letter in letters:
                self._out.writes.append(Unbury(letter.id))
            return Answer(dead.token, 0, {"dropped": len(letters)})
        as_ = dead.why["as"]
        if as_ is not None and is_reserved(as_):
            return Answer(dead.token, 1, None)
        return Answer(dead.token, 0, {"replayed": sum(self._replay(letter, as_, now) for letter in letters)})

    def _replay(self, letter: Letter, as_: str | None, now: float) -> bool:
        """Try a letter again; as another type, where one is given. False: it is under way already, or has no place."""
        meta = letter.meta
        if letter.id in self._replayed:
            return False
        self._replayed.add(letter.id)
        server = meta.get("server")
        if type(server) is str and as_ is None:
            return self._replay_to_server(letter, server, now)
        case = self._second_chance(letter)
        parcel = Parcel(
            case, letter.id, case.root, as_ or letter.type, letter.body, meta.get("scope") or "handler",
            meta.get("origin") or self._settings.name, meta.get("user"), meta.get("peer"), list(meta.get("path") or ()),
            repeated=True,
        )  # fmt: skip
        self._enter(parcel, now)
        return True

    def _replay_to_server(self, letter: Letter, server: str, now: float) -> bool:
        """It waits in its lane again, and is a dead letter until that is on disk."""
        meta, case = letter.meta, self._second_chance(letter)
        entry = Entry(
            self._boxes.take_numbers(1), lane(server, letter.type), f"{letter.id}.replay.{round(letter.at_s)}",
            server, letter.type, letter.body, case.sender, self._boxes.wall(now) + self._settings.bounds.ttl_s,
            {key: meta.get(key) for key in ("root", "origin", "path")} | {"message": letter.id, "repeated": True},
        )  # fmt: skip
        self._reports.begin(case)
        code = self._boxes.keep(entry, case, now)
        if code is not None:
            case.record(server, failed(code))
        self._reports.pay(case)
        return code is None

    def _second_chance(self, letter: Letter) -> Case:
        case = Case(Kind.REPLAY, NOWHERE, 0, letter.id, letter.meta.get("root") or letter.id)
        case.sender, case.peer = letter.meta.get("user"), letter.meta.get("peer")
        case.watchers = (_Second(letter.id, self._out, self._replayed),)
        return case


def _sound(wanted: Any) -> bool:
    """Can it be read which letters are meant?"""
    if type(wanted) is not dict:
        return False
    limit = wanted.get("limit")
    names = all(wanted.get(key) is None or type(wanted[key]) is str for key in ("id", "type", "as"))
    return names and (limit is None or (type(limit) is int and limit > 0))


def _line(letter: Letter) -> dict[str, Any]:
    meta = letter.meta
    return {
        "id": letter.id, "type": letter.type, "reason": letter.reason, "at_ms": round(letter.at_s * 1000),
        "attempts": meta.get("attempts", 0), "bytes": meta.get("bytes", 0), "path": meta.get("path", []),
        "server": meta.get("server"),
    }  # fmt: skip


def _whole(letter: Letter) -> dict[str, Any]:
    meta = letter.meta
    said = {key: meta.get(key) for key in ("user", "origin", "root", "scope", "peer")}
    return _line(letter) | said | {"body": letter.body.decode("utf-8", "replace")}
