"""Dead letters: messages that were given up although somebody may still want them, and their replay.

A dead letter holds the body, the reason and the path of the message, and stays until an operator drops it, or
until it was replayed with success.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.effects import Effects, Link, Notice
from bester.broker.core.figures import Figures
from bester.broker.core.inspection import DeadLettersState
from bester.broker.core.jobs import Job
from bester.broker.core.queues import Queues
from bester.broker.core.settings import Settings
from bester.broker.core.trace import Trace
from bester.broker.store_requests import Bury, DeadLetter, DeadLetterPage, Entry, FindDeadLetters, Unbury, lane
from bester.broker.wire.messages import Answer, Ask, Message
from bester.broker.wire.outcomes import failed

MOST = MappingProxyType({"deadList": 10_000, "deadShow": 1, "deadReplay": 200, "deadDrop": 1_000})
"""Dead letters of one question: a turn of the loop has an end. Dead letters are replayed or dropped oldest first, and
the answer says how many are left of those there were, and where to go on (`next`, for the next question's `from`)."""
MAX_SERIAL = 2**63
NOWHERE = Link("direct", b"dead letters")
QUESTIONS = frozenset(MOST)
_REPLAYED = re.compile(r"\.replay\.([0-9]{1,18})$")
"""Ending of the id under which a dead letter goes to its server once more."""


def bury(letter: DeadLetter, out: Effects, figures: Figures, now: float) -> Bury:
    """Write a dead letter, count it, and give notice of it to the operator. Returns the write."""
    write = Bury(letter)
    out.writes.append(write)
    figures.count_dead(letter.type, letter.reason, now)
    server = letter.meta.get("server")
    to = {} if server is None else {"to": server}
    out.calls.append(Notice("dead-letter", {"id": letter.id, "type": letter.type, "reason": letter.reason, **to}))
    return write


class _Replay:
    """Watches the case of a replayed dead letter, and drops the letter after a success."""

    __slots__ = ("_letters", "_out", "_renamed", "id", "renamed")

    def __init__(self, id_: str, out: Effects, letters: set[str], renamed: dict[str, str]) -> None:
        self.id = id_
        self.renamed: str | None = None
        self._out = out
        self._letters = letters
        self._renamed = renamed

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """Take in the end of the replay."""
        self._letters.discard(self.id)
        if self.renamed is not None:
            self._renamed.pop(self.renamed, None)
        if case.reason is None:
            self._out.writes.append(Unbury(self.id))


class _Question(NamedTuple):
    """An operator's question: its name and token, and as which type the letters are to be replayed. `in_pages`: it is
    answered from a `DeadLetterPage`."""

    question: str
    token: int
    as_type: str | None
    in_pages: bool


class DeadLetters:
    """The dead letters of a broker. `enter` dispatches a job again; `knows` returns whether a type has, or had,
    handlers, `owns` whether its sender still has the account with which it was sent."""

    def __init__(
        self, settings: Settings, queues: Queues, reports: Reports, out: Effects, enter: Callable[[Job, float], None],
        knows: Callable[[str], bool], owns: Callable[[DeadLetter], bool], figures: Figures, trace: Trace,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._queues = queues
        self._reports = reports
        self._out = out
        self._enter = enter
        self._knows = knows
        self._owns = owns
        self._figures = figures
        self._trace = trace
        self._replayed: set[str] = set()  # ids of the letters that are being replayed
        self._renamed: dict[str, str] = {}  # by the id of a replay that has an id of its own, that of its letter

    def inspect(self) -> DeadLettersState:
        """Return how many dead letters are being replayed."""
        return DeadLettersState(len(self._replayed), len(self._renamed))

    def bury(self, job: Job, reason: str, now: float) -> None:
        """Bury a message with this reason, a code."""
        if not policy.may_keep(job.type):
            return
        meta = {
            "root": job.root, "origin": job.origin, "scope": job.scope, "user": job.user,
            "peer": job.peer, "path": job.path, "attempts": job.attempt,
            "bytes": len(job.body),
        }  # fmt: skip
        self._trace.add((now, job.root, job.id, reason, job.type, 0.0))
        id_ = self._renamed.get(job.id, job.id)
        letter = DeadLetter(id_, job.type, job.body, reason, self._queues.clock.wall(now), meta)
        job.case.letter = self._reports.letters.add(bury(letter, self._out, self._figures, now))

    def on_question(self, link: Link, ask: Ask) -> Answer | None:
        """Answer an operator's question. Returns None where the answer is sent after the letters were read."""
        argument, question = ask.argument, ask.question
        wanted: Any = {"id": argument} if question == "deadShow" else {} if argument is None else argument
        if not _sound(wanted) or (question == "deadShow" and argument is None):
            return Answer(ask.token, 1, None)  # an unreadable choice must not mean `all`
        id_, type_, limit = wanted.get("id"), wanted.get("type"), wanted.get("limit")
        limit = MOST[question] if limit is None else min(limit, MOST[question])
        asked = _Question(question, ask.token, wanted.get("as"), in_pages=question in ("deadReplay", "deadDrop"))
        bodies = question in ("deadShow", "deadReplay")
        after, upto = wanted.get("from") or (0, 0)
        self._out.read(
            FindDeadLetters(id_, type_, limit, bodies, asked.in_pages, after=after, upto=upto),
            lambda answer, now: self._out.send(link, self._answer(asked, () if answer is None else answer, now)),
        )
        return None

    def _answer(self, asked: _Question, answer: Sequence[DeadLetter] | DeadLetterPage, now: float) -> Answer:
        """Return the answer to an operator, given the dead letters that were read."""
        if isinstance(answer, DeadLetterPage):
            return self._do(asked, answer, now)
        if asked.in_pages:  # the store could not be read; a notice was given
            return self._do(asked, DeadLetterPage([], 0, 0, 0), now)
        if asked.question == "deadList":
            return Answer(asked.token, 0, [_line(letter) for letter in answer])
        return Answer(asked.token, 0, _whole(answer[0])) if answer else Answer(asked.token, 1, None)

    def _do(self, asked: _Question, page: DeadLetterPage, now: float) -> Answer:
        left: dict[str, Any] = {"left": page.left}
        if page.left:
            left["next"] = [page.after, page.upto]
        if asked.question == "deadDrop":
            for letter in page.letters:
                self._out.writes.append(Unbury(letter.id))
            return Answer(asked.token, 0, {"dropped": len(page.letters)} | left)
        as_ = asked.as_type
        if as_ is not None and not self._knows(as_):
            return Answer(asked.token, 1, f"no handler of type {as_!r} was ever here; give one of those there are")
        return Answer(
            asked.token, 0, {"replayed": sum(self._replay(letter, as_, now) for letter in page.letters)} | left
        )

    def _replay(self, letter: DeadLetter, as_: str | None, now: float) -> bool:
        """Replay a dead letter, as type `as_` where that is given. Returns False where a replay is under way already,
        or there is no room."""
        meta = letter.meta
        if letter.id in self._replayed:
            return False
        self._replayed.add(letter.id)
        server = meta.get("server")
        if type(server) is str and as_ is None:
            return self._replay_to_server(letter, server, now)
        case, watch = self._second_chance(letter)
        id_ = letter.id
        if as_ is not None:  # a recipient of the first attempt's results gets those of the other handler, too
            watch.renamed = id_ = (
                f"{letter.id}.{self._queues.reserve_numbers(1)}.replay"  # still counts as one of its results
            )
            self._renamed[id_] = letter.id
        job = Job(
            case, id_, case.root, as_ or letter.type, letter.body, meta.get("scope") or "handler",
            meta.get("origin") or self._settings.name, meta.get("user"), meta.get("peer"), list(meta.get("path") or ()),
            repeated=True,
        )  # fmt: skip
        self._enter(job, now)
        return True

    def _replay_to_server(self, letter: DeadLetter, server: str, now: float) -> bool:
        """Enqueue a dead letter in its lane again; the letter is dropped once that is committed."""
        meta, (case, _), stored_s = letter.meta, self._second_chance(letter), self._queues.clock.stored(now)
        entry = Entry(
            self._queues.reserve_numbers(1), lane(server, letter.type), _next_id(letter),
            server, letter.type, letter.body, case.sender, stored_s + self._settings.bounds.ttl_s,
            {key: meta.get(key) for key in ("root", "origin", "path")}
            | {"message": letter.id, "repeated": True, "at_s": stored_s},
        )  # fmt: skip
        self._reports.begin(case)
        route = self._settings.routes.get(server)
        code = None if route is None else policy.may_send(self._settings, route, server, letter.type)
        code = code or self._queues.enqueue(entry, case, now)
        if code is not None:
            case.record(server, failed(code))
        self._reports.settle_one(case)
        return code is None

    def _second_chance(self, letter: DeadLetter) -> tuple[Case, _Replay]:
        case = Case(Kind.REPLAY, NOWHERE, 0, letter.id, letter.meta.get("root") or letter.id)
        case.sender, case.peer = letter.meta.get("user") if self._owns(letter) else None, letter.meta.get("peer")
        watch = _Replay(letter.id, self._out, self._replayed, self._renamed)
        case.watchers = (watch,)
        return case, watch


def _next_id(letter: DeadLetter) -> str:
    """Return the id under which a dead letter goes to its server once more: the same at every replay of this letter,
    and unlike the ids of the letters it was before."""
    before = _REPLAYED.search(letter.id)
    number = max(round(letter.at_s * 1000), int(before[1]) + 1 if before else 0)
    return f"{letter.id[: before.start()] if before else letter.id}.replay.{number}"


def _sound(wanted: Any) -> bool:
    """Return whether a choice of dead letters can be read."""
    if type(wanted) is not dict:
        return False
    limit = wanted.get("limit")
    names = all(wanted.get(key) is None or type(wanted[key]) is str for key in ("id", "type", "as"))
    start = wanted.get("from")
    if start is not None and not (
        type(start) is list and len(start) == 2 and all(type(each) is int and 0 <= each < MAX_SERIAL for each in start)
    ):
        return False
    return names and (limit is None or (type(limit) is int and limit > 0))


def _line(letter: DeadLetter) -> dict[str, Any]:
    meta = letter.meta
    return {
        "id": letter.id, "type": letter.type, "reason": letter.reason, "at_ms": round(letter.at_s * 1000),
        "attempts": meta.get("attempts", 0), "bytes": meta.get("bytes", 0), "path": meta.get("path", []),
        "server": meta.get("server"),
    }  # fmt: skip


def _whole(letter: DeadLetter) -> dict[str, Any]:
    meta = letter.meta
    names = {key: meta.get(key) for key in ("user", "origin", "root", "scope", "peer")}
    return _line(letter) | names | {"body": letter.body.decode("utf-8", "replace")}
