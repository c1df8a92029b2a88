"""The rules that hold under every fault; each is checked while a scenario is played, or at its end.

Requests to handlers, arrivals and remains are checked here; `truth` checks whether reports and answers were true.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bester.broker.store_requests import FindDeadLetters
from bester.broker.wire.messages import HOP_LIMIT, Heartbeat, Request
from tests.simulation import programs
from tests.simulation.clients import SimClient, Submission
from tests.simulation.programs import Leaf
from tests.simulation.truth import QUEUED, Truth, submissions
from tests.world.clock import BrokenRuleError
from tests.world.handlers import SimHandler
from tests.world.natives import NativeServer
from tests.world.servers import SimServer

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario

EVERY_LETTER = FindDeadLetters(None, None, 1_000_000)
RESUBMITTED = 6
"""Upper bound of a bridge link's breaks in one scenario."""
UNCOUNTED = 4
"""Attempts that count for nothing: the first, beside others, and those beside a message that is over, which the worker
holds still and may have died of as well."""


class Rules:
    """The rules of one scenario. Each raises BrokenRuleError."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._given: set[bytes] = set()  # messages that some handler was given as they entered
        self._overtaken: dict[bytes, int] = {}  # messages that a later one went before: the number of that one
        self._asked = False

    # --- meanwhile --------------------------------------------------------------------------------------------------

    def requested(self, handler: SimHandler, request: Request) -> None:
        """A handler is given something: not too far, not too often, and in order where that was asked for."""
        path, id_ = request.meta["path"], request.meta["id"]
        if len(path) >= HOP_LIMIT:
            raise BrokenRuleError(f"{handler.name} was given {id_} after {len(path)} steps")
        budget = handler.server.settings.budgets.get(request.type)
        attempts = budget.attempts if budget is not None else handler.server.settings.limits.attempts
        # Attempts before a bridge submitted the message again count, too.
        if not 1 <= request.meta["attempt"] <= attempts + RESUBMITTED + UNCOUNTED:
            raise BrokenRuleError(f"{handler.name} was given {id_} as attempt {request.meta['attempt']}")
        if not path and request.meta["scope"] == "client":
            if request.type == "o" and request.body not in self._given:
                self._in_order(handler, request)
            self._given.add(request.body)

    def _in_order(self, handler: SimHandler, request: Request) -> None:
        """Check that no later message of the client was given to a handler before. An earlier one that never comes was
        given up by the server, whose report may be waiting for its disk."""
        if request.body in self._overtaken:
            number = self._overtaken[request.body]
            raise BrokenRuleError(f"{handler.name} was given number {number} before {request.body!r}")
        for client in self.scenario.clients:
            mine = next((submission for submission in client.submissions if submission.body == request.body), None)
            if mine is None:
                continue
            for submission in client.submissions:
                if submission is mine:
                    break
                if submission.type != "o" or submission.life != mine.life or submission.body in self._given:
                    continue
                if not (submission.reports or submission.failed or submission.body in handler.server.refused):
                    self._overtaken.setdefault(submission.body, mine.number)

    def pried(self, message: str, recipients: dict[str, str] | None) -> None:
        """Fail where a user got the outcome of another user's message."""
        if recipients is not None:
            raise BrokenRuleError(f"somebody else was told what became of {message}: {recipients}")

    def quiet(self) -> bool:
        """Return whether everything is reported, delivered and forgotten."""
        scenario = self.scenario
        return (
            all(client.ready and not client.unreported for client in scenario.clients)
            and all(map(rests, scenario.servers))
            and not scenario.neighbour.coming
        )  # fmt: skip

    def ask_what_became(self) -> None:
        """Let each sender with a queued result ask for its outcome."""
        for submission in self._submissions():
            if submission.reports and QUEUED in submission.reports[0].recipients.values():
                submission.answers.clear()
                submission.client.learn(submission)

    def all_answered(self) -> bool:
        return all(
            submission.answers
            for submission in self._submissions()
            if submission.reports and QUEUED in submission.reports[0].recipients.values()
        )

    # --- in the end -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All of them."""
        self._all_is_reported()
        self._nothing_is_held()
        arrived = self._arrivals_are_right()
        self._order_is_kept()
        self._nobody_is_blamed_for_another()
        Truth(self.scenario, arrived).check()

    def _submissions(self) -> Iterator[Submission]:
        return submissions(self.scenario.clients)

    def _all_is_reported(self) -> None:
        for client in self.scenario.clients:
            if not client.ready:
                raise BrokenRuleError(f"{client.name} is not logged in")
        for submission in self._submissions():
            ends = len(submission.reports) + (submission.failed is not None) + submission.forgiven
            if ends != 1:
                raise BrokenRuleError(f"{submission.client.name}: {ends} ends of {submission}")
        for peer in self.scenario.peers:
            if len(peer.reports) > 1:
                raise BrokenRuleError(f"a server was told twice: {peer}")

    def _nothing_is_held(self) -> None:
        for server in self.scenario.servers:
            if not server.router.idle:
                raise BrokenRuleError(f"{server.name} still owes reports")
            left = waiting(server)
            if left:
                raise BrokenRuleError(f"{server.name} still keeps {left}")
            for link in list(server.links):  # handlers that never answer hold their requests until they are gone
                server.router.on_undeliverable(link, Heartbeat(), server.now)
            held = holds(server)
            if held:
                raise BrokenRuleError(f"{server.name} still holds {held}")

    # --- arrivals, and the results that were due ---

    def _sources(self) -> list[tuple[str, bytes]]:
        scenario = self.scenario
        sent = [(submission.client.server.name, submission.body) for submission in self._submissions()]
        sent += [(peer.server, peer.body) for peer in scenario.peers]
        return sent + [(server.name, body) for _, server, _, body in scenario.emissions]

    def _arrivals_are_right(self) -> dict[Leaf, set[str]]:
        """Check that a message reaches only its recipients, and is repeated only with a mark and a reason.

        Return the ids under which each leaf came.
        """
        meant: Counter[Leaf] = Counter()
        round_: set[int] = set()
        for server, body in dict.fromkeys(self._sources()):
            number = programs.read(body)[0]
            if programs.endless(body):
                round_.add(number)
            found = list(programs.leaves(server, body))
            meant.update(found)
            if number in round_:  # round the ring, at every server
                names = [each.settings.name for each in self.scenario.servers]
                meant.update((name, user, leaf) for name in names for _, user, leaf in found)
        arrived: dict[Leaf, set[str]] = defaultdict(set)
        for client in self.scenario.clients:
            self._device_is_right(client, meant, round_, arrived)
        for native in self.scenario.natives.values():
            self._native_is_right(native, meant, arrived)
        return arrived

    def _native_is_right(self, native: NativeServer, meant: Counter[Leaf], arrived: dict[Leaf, set[str]]) -> None:
        """Check a native server's messages: its own alone, repeats marked, and in order where order was asked for."""
        ids: set[str] = set()
        unmarked: set[str] = set()  # an unmarked copy is allowed, even if another was faster
        last: dict[tuple[str, str, object], object] = {}
        for handled in native.handled:
            leaf = (native.name, "", handled.body)
            if leaf not in meant:
                raise BrokenRuleError(f"{native.name} was given what was not for it: {handled}")
            forgot = any(server.forgot for server in self.scenario.servers)
            if handled.id in unmarked and not handled.marked and not forgot:
                raise BrokenRuleError(f"{native.name} was given something again, and it is not marked: {handled}")
            if not handled.marked:
                unmarked.add(handled.id)
            first = handled.id not in ids
            ids.add(handled.id)
            arrived[leaf].add(handled.id)
            if native.name in self.scenario.ordered and first and not handled.marked:
                epoch, number, _ = handled.lane
                key = (handled.server, handled.type, epoch)
                if number < last.get(key, number):  # type: ignore[operator]  # they are integers
                    raise BrokenRuleError(f"{native.name} was given {handled} after number {last[key]}")
                last[key] = number

    def _device_is_right(
        self, client: SimClient, meant: Counter[Leaf], round_: set[int], arrived: dict[Leaf, set[str]]
    ) -> None:
        seen: dict[Leaf, set[str]] = defaultdict(set)
        unmarked: dict[Leaf, set[str]] = defaultdict(set)
        marked: set[tuple[int, str]] = set()  # lives and ids
        for arrival in client.arrivals:
            if programs.is_liars(arrival.body):
                continue
            leaf = (client.server.name, client.user, arrival.body)
            if leaf not in meant:
                raise BrokenRuleError(f"{client.name} ({client.user}) got what was not for them: {arrival}")
            ids, first = seen[leaf], unmarked[leaf]
            counted = programs.read(arrival.body)[0] not in round_
            calm = self.scenario.faults.calm and client.life == 1  # a client that leaves may have acked too little
            repeated = arrival.id.partition(".")[0] in self.scenario.neighbour.repeated  # its host moved
            if calm and not repeated and (arrival.id in ids or (counted and len(ids) >= meant[leaf])):
                raise BrokenRuleError(f"{client.name} got something again, and nothing had happened: {arrival}")
            if arrival.marked:
                marked.add((arrival.life, arrival.id))
            else:  # an unmarked copy is allowed, even if another was faster, unless one bridge has both
                if self.scenario.bridges_mark and (arrival.life, arrival.id) in marked:
                    raise BrokenRuleError(
                        f"{client.name} got the second of two copies, and it is not marked: {arrival}"
                    )
                again = arrival.id in first or (counted and len(first) >= meant[leaf])
                if again and not any(server.forgot for server in self.scenario.servers):
                    raise BrokenRuleError(f"{client.name} got something again, and it is not marked: {arrival}")
                first.add(arrival.id)
            ids.add(arrival.id)
        for leaf, ids in seen.items():
            arrived[leaf] |= ids

    def _nobody_is_blamed_for_another(self) -> None:
        """Check that a message is only given up for its handlers' deaths if it kills, or if enough died for other
        reasons.

        A message that kills may take others along once; from then on such a message is alone with its next worker.
        """
        for server in self.scenario.servers:
            handlers = [handler for handler in self.scenario.handlers if handler.server is server]
            handlers = [part for each in handlers for part in ([each] if each.process is None else each.process.parts)]
            others = server.handlers_lost - sum(
                programs.kills(each.body) for handler in handlers for each in handler.deaths
            )
            for letter in server.store.read(EVERY_LETTER):
                if letter.reason != "handler-lost" or programs.kills(letter.body) or "server" in letter.meta:
                    continue  # a dead letter for another server is that server's to explain
                budget = server.settings.budgets.get(letter.type)
                attempts = server.settings.limits.attempts if budget is None else budget.attempts
                if others < attempts <= letter.meta["attempts"]:  # too few attempts: it waited for a handler in vain
                    raise BrokenRuleError(f"{server.name} gave up {letter}, and {others} handlers died of other things")

    def _order_is_kept(self) -> None:
        """Check that messages of one client to one user come in order.

        Marked messages may come late: until a broken connection is seen to be broken, messages on it are in flight, and
        new ones arrive elsewhere.
        """
        senders: dict[int, tuple[str, int]] = {}
        for submission in self._submissions():
            # Messages of a loop or ring come again, and late.
            if submission.type == "o" and not programs.endless(submission.body):
                senders[submission.number] = (submission.client.name, submission.life)
        for client in self.scenario.clients:
            last: dict[tuple[str, int], int] = {}
            came: set[bytes] = set()
            for arrival in client.arrivals:
                number, at, _ = programs.read(arrival.body)
                if number not in senders or arrival.type != "o" or at.count(".") != 1 or arrival.body in came:
                    continue
                if arrival.marked:
                    continue
                came.add(arrival.body)
                sender = senders[number]
                home = next(each for each in self.scenario.clients if each.name == sender[0])
                if home.server is not client.server:
                    continue
                if number < last.get(sender, 0):
                    raise BrokenRuleError(f"{client.name} got number {number} after {last[sender]}, of {sender}")
                last[sender] = number


def waiting(server: SimServer) -> dict[str, int]:
    """Return the number of messages in each queue; the core and its store must agree on the numbers."""
    kept = {key: state.messages for key, state in server.store.inspect().queues.items()}
    return kept | {key: state.messages for key, state in server.router.inspect().queues.table.items()}


def rests(server: SimServer) -> bool:
    """Return whether a server has no pending reports, no stored messages, and waits for no answers."""
    if not server.router.idle:
        return False
    state = server.router.inspect()
    return not (
        state.deliveries or any(state.transfers.values()) or state.queues.table or server.store.inspect().queues
    )


def holds(server: SimServer) -> str:
    """Return the leftovers in a broker's memory, with nothing to do and nobody linked; empty where there are none."""
    state = server.router.inspect()
    counts = {
        "deliveries": state.deliveries,
        "transfers": sum(state.transfers.values()),
        "waiting": sum(state.workers.waiting.values()),
        "jobs": state.jobs,
        "bytes of jobs": state.job_bytes,
        "queued": state.queues.messages,
        "queued bytes": state.queues.size_bytes,
        "uncommitted": state.queues.writing,
        "ended early": state.queues.ended_early,
        "records": state.queues.records,
        "shares": len(state.queues.shares),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
