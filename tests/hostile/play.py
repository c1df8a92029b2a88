"""A hostile run: honest traffic alone, then beside one hostile party after the other, each at its worst.

A control says what the machine alone costs: honest traffic at servers that nobody attacks, beside a program that only
burns as much of the processors as the hostile party has had.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from tests.hostile.bounds import bound_bytes, names_of
from tests.hostile.honest import Honest, Letter, Phase
from tests.hostile.stand import Attack, Processor, Stand, stand

PARTIES = ("user", "handler", "server")
ALL = "all"
"""All parties at once."""
CONTROL = "spinner"
LEAST_SHARE = 0.005
"""Threads that have run for less of the time have no part in the control."""
WARM_S = 1.0
BRIEF_REST_S = 0.1
"""Between two batches of one manner in a brief run: what the server has taken in is worked off in a moment."""


class Beside(NamedTuple):
    """Honest traffic beside one party (None: alone). `grown_bytes` is the peak of the server's memory above that
    before the attack; `seen` counts letters of others that the party could read. `processor` has the shares of the time
    for which the server ran, and for which it stood; `burned` is how many processors the party kept busy."""

    party: str | None
    phase: Phase
    outcomes: dict[str, int]
    lost: list[Letter]
    unreported: int
    strays: list[str]
    twice: list[str]
    seen: int
    grown_bytes: int
    did: Counter[str]
    processor: Processor
    burned: float = 0.0

    @property
    def bound_bytes(self) -> int:
        """Return the memory that this party may make the server hold."""
        return 0 if self.party is None or self.party == CONTROL else bound_bytes(self.party)

    def wrongs(self) -> list[str]:
        """Return the broken rules, in words."""
        who = called(self.party)
        found = [f"{who}: {len(self.lost)} letters were lost, as {self.lost[:3]}"] if self.lost else []
        if self.unreported:
            found.append(f"{who}: {self.unreported} letters have no report")
        found += [f"{who}, misdelivered: {stray}" for stray in self.strays[:5]]
        found += [f"{who}, twice and not marked: {twice}" for twice in self.twice[:5]]
        if self.seen:
            found.append(f"{who}: the hostile party read {self.seen} letters of others")
        if self.party and 0 < self.bound_bytes < self.grown_bytes:
            names = names_of(self.party)
            found.append(
                f"{who}: memory grew by {self.grown_bytes >> 20} MiB, above {self.bound_bytes >> 20} ({names})"
            )
        return found


def called(party: str | None) -> str:
    """Return the name of a row."""
    if party is None:
        return "alone"
    return "beside a program that only spins" if party == CONTROL else f"beside a hostile {party}"


async def play(
    parties: Sequence[str],
    seconds: float,
    seed: int,
    tell: Callable[[str], None] = lambda text: None,
    *,
    manner: str | None = None,
    alone_s: float | None = None,
    control: bool = False,
    brief: bool = False,
) -> list[Beside]:
    """Return how the honest fared alone, and beside each party; each party meets a server of its own.

    With `manner` a party does that one thing alone. `alone_s` is the time without an attack, a quarter of `seconds`
    where it is left out. With `control` a row follows for a program that only burns as much of the processors, beside
    servers of its own. With `brief` the parties are at everybody's priority, and rest between two batches, so that
    times mean nothing, and the servers end without waiting for what is under way.
    """
    rows: list[Beside] = []
    if alone_s is None:
        alone_s = max(seconds / 4, 1.0)
    for number, party in enumerate(parties):
        spec: dict[str, Any] = {"manner": manner, "rest_s": BRIEF_REST_S if brief else 0, "yields": not brief}
        names = PARTIES if party == ALL else (party,)
        found, burned = await _beside(party, names, spec, seconds, alone_s, seed + number, tell)
        rows += found
        if control:
            spec = {**spec, "manner": None, "shares": [share for share in burned if share >= LEAST_SHARE]}
            found, _ = await _beside(CONTROL, (CONTROL,), spec, seconds, min(WARM_S, alone_s), seed + number, tell)
            rows += found[1:]
    return rows


async def _beside(
    party: str,
    programs: Sequence[str],
    spec: dict[str, Any],
    seconds: float,
    alone_s: float,
    seed: int,
    tell: Callable[[str], None],
) -> tuple[list[Beside], list[float]]:
    """Return how the honest fared alone and beside a party of some programs, and which share of a processor each thread
    of these has had."""
    async with stand(brief=not spec["yields"]) as here:
        honest = Honest(here)
        attacks = [Attack(program, {**here.spec(), **spec}, seed) for program in programs]
        try:
            await honest.start()
            await honest.run(Phase("warm"), min(WARM_S, alone_s))
            alone = Phase("alone")
            tell(f"honest traffic alone, for {alone_s:g} s")
            processor = await _shares(here, honest.run(alone, alone_s))
            await honest.settle()
            here.note_quiet()
            before = _row(None, alone, honest, 0, 0, Counter(), processor)
            tell(f"{called(party)}, for {seconds:g} s")
            await asyncio.gather(*(asyncio.to_thread(attack.begin) for attack in attacks))
            beside = Phase(party)
            processor = await _shares(here, honest.run(beside, seconds))
            did: Counter[str] = Counter()
            for counts in await asyncio.gather(*(asyncio.to_thread(attack.stop) for attack in attacks)):
                did.update(counts)
            await honest.settle()
            burned = [share for attack in attacks for share in attack.shares]
            row = _row(party, beside, honest, did.pop("seen"), here.grown_bytes, did, processor)
            return [before, row._replace(burned=sum(burned))], burned
        finally:
            for attack in attacks:
                attack.kill()
            await honest.stop()


async def _shares(here: Stand, work: Awaitable[None]) -> Processor:
    """Wait for some work; return for which shares of that time the server ran, and stood without a processor."""
    loop = asyncio.get_running_loop()
    before, began = here.processor_s(), loop.time()
    await work
    took = here.processor_s().since(before)
    span_s = loop.time() - began
    return Processor(took.ran / span_s, took.stood / span_s)


def _row(
    party: str | None, phase: Phase, honest: Honest, seen: int, grown: int, did: Counter[str], processor: Processor
) -> Beside:
    outcomes: dict[str, int] = {}
    for letter in phase.sent:
        outcome = honest.outcomes.get(letter, "no report")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    lost = [letter for letter in honest.missing() if letter in phase.sent]
    strays, twice = honest.strays[:], honest.twice[:]
    honest.strays.clear()
    honest.twice.clear()
    return Beside(party, phase, outcomes, lost, honest.unreported, strays, twice, seen, grown, did, processor)
