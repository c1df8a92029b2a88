"""Everything that a broker tells of itself: its counts, its status, and the answers to its peers' questions. Pure.

A question changes nothing of a message's way, but for those of operators that say so, and the change of a password.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from bester.broker.core import cockpit, policy, recordings
from bester.broker.core.assemble import Units
from bester.broker.core.clock import Clock
from bester.broker.core.dead_letters import QUESTIONS
from bester.broker.core.effects import ChangePassword, Effects
from bester.broker.core.inspection import Bound, Inspection
from bester.broker.core.peer import Peer
from bester.broker.core.rates import Rates
from bester.broker.core.refused import Refused
from bester.broker.core.settings import Settings
from bester.broker.core.status import Counts, figures_of, sessions_of, status_of
from bester.broker.core.symptoms import busiest, refused_lately
from bester.broker.core.types_state import types_of
from bester.broker.wire.messages import Answer, Ask


class Inquiries:
    """Answers of one broker, which started at `now`. `refused` are the connections that the fabric refused."""

    def __init__(
        self, settings: Settings, out: Effects, units: Units, clock: Clock, refused: Refused, now: float
    ) -> None:
        self._settings = settings
        self._out = out
        self._units = units
        self._by_link = units.peers.by_link
        self._clock = clock
        self._refused = refused
        self._rates = Rates()
        self._started = now
        self.is_ending = False
        """Tell in the status that the server ends: its bridge finishes what clients have sent, and takes no more."""

    def fold(self, now: float) -> None:
        """Fold the figures, and estimate the rates of senders; call about once a second."""
        self._units.figures.fold()
        self._rates.look(self._units.figures.received(), self._units.workers.held(), now)
        if not self._settings.spans:  # exported spans are those of every message with a traceparent
            self._units.trace.sample(self._rates.latest())

    def inspect(self) -> Inspection:
        """Return counts of everything that this broker holds. Counting is done at the call, which takes longer the more
        there is."""
        units, peers, bounds = self._units, self._by_link.values(), self._bounds()
        return Inspection(
            peers=self._roles(),
            strangers=units.peers.strangers,
            users=units.directory.user_count,
            sessions=units.directory.session_count,
            logins=sum(len(peer.logins) for peer in peers),
            cases=units.reports.open,
            answers=units.answers.count,
            jobs=bounds["jobs"].used,
            job_bytes=bounds["job_bytes"].used,
            unplaced=units.ingress.unplaced,
            workers=units.workers.inspect(peer.worker for peer in peers if peer.worker is not None),
            deliveries=units.deliveries.count,
            transfers=units.relays.transfers.inspect(),
            queues=units.queues.inspect(),
            dedup=units.ingress.dedup(),
            notes=dict(units.notes.counts),
            lanes=units.inbound_lanes.inspect(),
            resume={prefix: resume.inspect() for prefix, resume in units.peers.resumes.items()},
            reporters=units.reporters.inspect(),
            dead_letters=units.dead_letters.inspect(),
            bounds=bounds,
            reached=Counter(self._out.reached),
        )

    def _roles(self) -> dict[str, int]:
        return dict(Counter(peer.role for peer in self._by_link.values()))

    def _bounds(self) -> dict[str, Bound]:
        units = self._units
        return {
            **units.peers.bounds(), **units.dispatcher.bounds(), **units.queues.bounds(), **units.ingress.bounds(),
            **units.credit.bounds(), **units.auth.bounds(),
        }  # fmt: skip

    def _counts(self) -> Counts:
        units = self._units
        waiting, inflight = units.workers.by_type(peer.worker for peer in self._by_link.values() if peer.worker)
        return Counts(
            self._roles(), units.directory.user_count, units.directory.session_count, units.reports.open,
            units.deliveries.count, waiting, inflight, self._bounds(), self._out.reached,
        )  # fmt: skip

    def _symptoms(self, now: float) -> dict[str, Any]:
        return {
            "at_s": round(self._clock.wall(now), 3),
            "given_up": sorted(self._units.known_types.given_up),
            "busiest": busiest(self._units.workers.queues.by_sender()),
            "rates": self._rates.as_map(),
            "recent_dead": self._units.figures.recent_dead.as_map(now),
            "refused": refused_lately(self._refused.latest(), now),
            **self._units.adoption.as_map(now),
        }

    def status(self, now: float) -> dict[str, Any]:
        """Return the status of this broker as plain values, see `status_of`."""
        units = self._units
        return status_of(
            self._settings, self._counts(), units.figures, self._by_link.values(), units.queues, units.relays,
            units.standing, units.cockpit.oldest_s(now), now, up_s=now - self._started,
            draining=self.is_ending or units.ingress.draining, symptoms=self._symptoms(now),
        )  # fmt: skip

    def ask(self, peer: Peer, ask: Ask, now: float) -> None:
        """Answer a question of a peer, now or once the answer is known."""
        if not policy.may_ask(peer.role, ask.question):
            answer: Answer | None = Answer(ask.token, 1, None)
        elif ask.question == "passwd":
            answer = self._change_password(peer, ask)
        elif ask.question in QUESTIONS:
            answer = self._units.dead_letters.on_question(peer.link, ask)
        elif ask.question == "types":
            units, peers = self._units, self._by_link.values()
            page = types_of(ask.argument, peers, units.contracts, units.workers, units.shadows)
            answer = Answer(ask.token, int(page is None), page)
        elif ask.question == "status":
            answer = Answer(ask.token, 0, self.status(now))
        elif ask.question == "follow":
            answer = self._units.following.on_question(peer.link, ask, now)
        elif ask.question == "sessions":
            answer = Answer(ask.token, 0, sessions_of(self._units.directory))
        elif ask.question == "figures":
            told = figures_of(ask.argument)
            peer.figures = peer.figures if told is None else told
            answer = Answer(ask.token, int(told is None), None)
        elif ask.question == recordings.QUESTION:
            answer = Answer(ask.token, *self._units.recordings.on_question(peer.link, ask.argument, now))
        elif ask.question in cockpit.QUESTIONS:
            answer = self._units.cockpit.on_question(peer.link, ask, self._by_link.values(), now)
        else:
            answer = self._units.questions.answer(peer.link, ask, self._by_link.values())
        if answer is not None:
            self._out.send(peer.link, answer)

    def _change_password(self, peer: Peer, ask: Ask) -> Answer | None:
        """Have the password of one of a bridge's sessions changed. The argument is never shown: it has passwords."""
        argument = ask.argument
        if type(argument) is list and len(argument) == 4 and type(argument[0]) is int:
            session, *texts = argument
            user = self._units.directory.user(peer.link, session)
            if user is not None and all(type(text) is str for text in texts):
                self._out.calls.append(ChangePassword(peer.link, ask.token, user, *texts))
                return None
        return Answer(ask.token, 1, ["not-allowed", None])
