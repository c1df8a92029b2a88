"""Plays a story: writes its files, starts its servers, sends its messages, and checks their ends."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from bester.broker.accounts import Accounts
from bester.broker.config import Config
from bester.broker.wire.codes import BesterError
from bester.cli.demo import drawing
from bester.cli.demo.people import Person, Sent
from bester.cli.demo.routes import route_of, ways_of
from bester.cli.demo.servers import Servers
from bester.cli.demo.story import STORIES, Addresses, Sending, Story, write_files
from bester.cli.demo.traces import steps_at
from bester.cli.page import open_in_browser

START_S = 40.0
"""Seconds until the rehearsal must be over: it takes two, and many times that on a slow, loaded machine."""
SEND_S = 60.0
"""Seconds until every report must be there: as long as a server waits for another."""
EVERY_S = 1.0
"""Time between two sendings under `--page`: the pages show rates by the second."""
LINKED = {
    "fabric": "over the fabric",
    "native-name": "by the native protocol, by name",
    "native-address": "by the native protocol, by address",
}


class Scene(NamedTuple):
    """A story on stage: its servers' configurations, the servers' names for each other, its connected people."""

    configs: Sequence[Config]
    called: Addresses
    people: Mapping[str, Person]


class Performance(NamedTuple):
    """Result of one sending: each sent message, and the receiver's copies of it, with their times."""

    sent: list[Sent]
    received: list[list[tuple[float, bytes]]]

    @property
    def faults(self) -> list[str]:
        """Faults, one line for each kind."""
        bad = [sent.report for sent in self.sent if not sent.report.good]
        lost = sum(not copies for copies in self.received)
        double = sum(len(copies) > 1 for copies in self.received)
        faults = []
        if bad:
            reasons = ", ".join(sorted({report.reason or "no reason given" for report in bad}))
            faults.append(f"{len(bad)} of {len(self.sent)} reports are bad: {reasons}")
        if lost:
            faults.append(f"{lost} of {len(self.sent)} messages did not arrive")
        if double:
            faults.append(f"{double} of {len(self.sent)} messages arrived more than once")
        return faults


async def play(name: str, links: str, count: int, directory: Path, *, pages: bool = False) -> int:
    """Play a story and return the exit status: 0 where every message arrived and every report was good.

    With `pages` the servers' pages are shown, and the story is played again and again until Ctrl-C.
    """
    story = STORIES[name]
    console = Console(highlight=False)
    drawing.say(console, story.title, "bold")
    began = time.monotonic()
    good = True
    async with _scene(story, links, count, directory, pages=pages) as scene:
        handlers = sum(len(config.handlers) for config in scene.configs)
        drawing.say(
            console,
            f"{', '.join(story.servers)}: {len(story.servers)} servers with {handlers} handlers, "
            f"linked {LINKED[links]}; up after {time.monotonic() - began:.1f} s",
        )
        for sending in story.sendings:
            performance = await _perform(sending, scene, count)
            await _show(console, sending, scene, performance)
            good = good and not performance.faults
        if pages:
            good = await _repeat(console, story, scene, count) and good
    return 0 if good else 1


@asynccontextmanager
async def _scene(story: Story, links: str, count: int, directory: Path, *, pages: bool) -> AsyncIterator[Scene]:
    """Set everything up, and rehearse, so that the times are those of messages and not of starting programs."""
    configs, called = write_files(story, links, directory, pages=pages)
    people = {}
    for config in configs:
        for name in (name for name, server in story.people.items() if server == config.server.name):
            people[name] = Person(name, str(config.native.tcp4), _account(config, name), count)
    # Handlers that know a server by name get its address where the links are by address.
    environment = {f"{server}_ADDRESS": address for server, address in called.items()}
    async with Servers(configs, environment) as servers:
        try:
            try:
                async with asyncio.timeout(START_S):
                    for person in people.values():
                        await person.connect(servers.check)
                    for sending in story.sendings:
                        sent = await people[sending.sender].rehearse(sending.type, sending.data(called), servers.check)
                        await people[sending.receiver].has([sent.root])
            except TimeoutError:
                raise BesterError("timeout", f"not up within {START_S:g} s; {servers.last_log_lines()}") from None
            yield Scene(configs, called, people)
        finally:
            await asyncio.gather(*(person.close() for person in people.values()))


async def _repeat(console: Console, story: Story, scene: Scene, count: int) -> bool:
    """Show the pages and send every EVERY_S until Ctrl-C; return whether all arrived, with good reports."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    drawing.say(console, "")
    for config in scene.configs:
        drawing.say(console, f"{config.server.name}'s page:  http://{config.operator.http}/", "bold")
        open_in_browser(f"http://{config.operator.http}/")
    drawing.say(console, f"A message is sent every {EVERY_S:g} s; Ctrl-C ends the demo.")
    faults: set[str] = set()
    while not stop.is_set():
        for sending in story.sendings:
            for fault in (await _perform(sending, scene, count)).faults:
                if fault not in faults:
                    drawing.say(console, fault, "bold red")
                faults.add(fault)
        for person in scene.people.values():
            person.received.clear()  # a demo may run for days
        try:
            await asyncio.wait_for(stop.wait(), EVERY_S)
        except TimeoutError:
            pass
    return not faults


def _account(config: Config, name: str) -> str:
    """Make an account and return its password."""
    password = secrets.token_urlsafe()
    with closing(Accounts(config.server.data_dir)) as accounts:
        accounts.add(name, password)
    return password


async def _perform(sending: Sending, scene: Scene, count: int) -> Performance:
    """Send so many messages at once; wait for the reports, and for the messages reported as delivered."""
    sender, receiver = scene.people[sending.sender], scene.people[sending.receiver]
    data = sending.data(scene.called)
    try:
        async with asyncio.timeout(SEND_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(sender.send(sending.type, data)) for _ in range(count)]
    except TimeoutError:
        raise BesterError("timeout", f"not every report came within {SEND_S:g} s") from None
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None  # all failed alike, on one lost connection
    sent = [task.result() for task in tasks]
    await receiver.has([each.root for each in sent if each.report.good])
    return Performance(
        sent, [[(at_ms, message.raw) for at_ms, message in receiver.received.get(each.root, [])] for each in sent]
    )


async def _show(console: Console, sending: Sending, scene: Scene, performance: Performance) -> None:
    """Show the sent and received messages, and draw the paths in the brokers' traces."""
    sent, received = performance
    total = len(sent)
    data = json.dumps(sending.data(scene.called), ensure_ascii=False)
    first = next((copies[0][1].decode() for copies in received if copies), "nothing")
    drawing.say(console, "")
    drawing.say(console, f"{sending.sender} sends {sending.type}:  {data}")
    drawing.say(console, f"{sending.receiver} receives:  {first}")
    if total > 1:
        arrived = sum(bool(copies) for copies in received)
        reports = sum(each.report.good for each in sent)
        took_ms = max(each.reported_ms for each in sent) - min(each.at_ms for each in sent)
        drawing.say(console, f"{total} sent at once: {arrived} arrived, {reports} reports good, in {took_ms:.0f} ms")
    else:
        drawing.say(console, f"report to {sending.sender}:  {'good' if sent[0].report.good else 'bad'}")
    for fault in performance.faults:
        drawing.say(console, fault, "bold red")
    done = [(each, copies[0][0]) for each, copies in zip(sent, received, strict=True) if copies]
    if not done:
        return
    roots = [each.root for each, _ in done]
    found = await asyncio.gather(*(steps_at(config, roots) for config in scene.configs))
    routes = []
    for (each, received_ms), *steps in zip(done, *found, strict=True):
        routes.append(route_of(chain(*steps), sending.sender, sending.receiver, each.at_ms, received_ms))
    for way in ways_of(routes, [each.reported_ms - each.at_ms for each, _ in done]):
        drawing.way(console, way, total)
