"""Several stands of one world whose servers know each other; messages between them arrive when told to flow."""

from __future__ import annotations

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import Bounds
from bester.broker.wire.messages import Error, Goodbye, Relay, Relayed
from tests.unit.core_stand import START, Stand
from tests.world.clock import World

ACCOUNTS = frozenset({"alice", "bob", "carol"})


class Net:
    """Servers of these names, each with the same three accounts, a while after their start, without any link."""

    def __init__(self, *names: str, ttl_s: float = 600.0) -> None:
        self.stands: dict[str, Stand] = {}
        self.links: dict[tuple[str, str], Link] = {}
        self.world = World(start_s=START - 5.0)
        for name in names:
            routes = {other: Route(other, fabric=f"ipc:///{other}") for other in names if other != name}
            settings = Settings(name, routes=routes, bounds=Bounds(ttl_s=ttl_s))
            self.stands[name] = Stand(settings, accounts=ACCOUNTS, world=self.world)
        self.wait(5.0)

    def __getitem__(self, name: str) -> Stand:
        return self.stands[name]

    def join(self, *names: str) -> None:
        """Bring up the links among these servers."""
        for one in names:
            for two in names:
                if one != two and (one, two) not in self.links:
                    self.links[one, two] = self[two].server(one)
                    self[one].take(self[one].router.on_server_ready(two, self[one].now))
        self.flow()

    def part(self, *names: str) -> None:
        """Break these links; messages that did not flow yet are lost."""
        for (one, two), link in list(self.links.items()):
            if one in names and two in names:
                del self.links[one, two]
                self[one].inbox.pop(Link("server", two.encode()), None)
                self[two].inbox.pop(link, None)
                self[two].alive.pop(link, None)
                self[two].say(link, Goodbye(None))
                self[one].take(self[one].router.on_server_lost(two, "parted", self[one].now))

    def kill(self, name: str) -> None:
        """Kill a server and start it again, without its links and parties."""
        for (one, two), link in list(self.links.items()):
            if name in (one, two):
                del self.links[one, two]
                if one != name:
                    self[one].inbox.pop(Link("server", two.encode()), None)
                    self[one].take(self[one].router.on_server_lost(two, "killed", self[one].now))
                else:
                    self[two].alive.pop(link, None)
                    self[two].say(link, Goodbye(None))
        self[name].restart(f"e{self[name].store.inspect().life}")

    def flow(self) -> None:
        """Let every message arrive, each turn's together, until no server sends any more."""
        busy = True
        while busy:
            busy = False
            for (one, two), link in list(self.links.items()):
                there = Link("server", two.encode())
                relays = self[one].heard_of(there, Relay)
                if relays:
                    self[two].say(link, *relays)
                answers = [each for each in self[two].heard(link) if isinstance(each, Relayed | Error)]
                if answers:
                    self[one].say(there, *answers)
                busy = busy or bool(relays or answers)

    def wait(self, seconds: float) -> None:
        """Let time pass everywhere, and messages arrive."""
        for _ in range(round(seconds * 2)):
            self.world.rest(0.5)
            for stand in self.stands.values():
                stand.beat()
            self.flow()
