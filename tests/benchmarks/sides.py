"""The sides of the comparison: each a server and one Python echo handler in a process of its own, on loopback.

A side is entered once and serves all runs. All sides are treated alike: same machine, same body, same load generator,
uvloop in every Python process.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.processes import Running, children, free_port
from tests.benchmarks.programs import nats_server
from tests.postgres_server import Cluster

CLUSTER = ("b1", "b2")
PROBE_TIMEOUT_S = 6.0  # time for one answer of a server that waits up to 5 s for its handler to come


class Side(NamedTuple):
    """A side: its address, and the processes whose time counts as its own."""

    name: str
    protocol: str  # the protocol's name in the load generator
    port: int
    processes: dict[str, Running]
    fabric: str = ""  # the broker's endpoint, of Bester's sides; of several brokers all, with commas
    part: int = 1  # a run of this side has one so-manieth of a job's messages, where the side is slow
    ca: Path | None = None  # file of the authority that the load generator trusts, of sides inside TLS
    victim: str = ""  # label of the process that is killed in the middle of a run, whose time does not count

    def watched(self) -> list[str]:
        """Return `label=pid` of every process as they are now; a child of the server is its handler."""
        found = []
        for label, process in self.processes.items():
            if label == self.victim:
                continue
            found.append(f"{label}={process.pid}")
            below = label if "handler" in self.processes else "handler"
            found += [f"{below}={pid}" for pid in children(process.pid)]
        return found


@contextmanager
def nats(folder: Path) -> Iterator[Side]:
    """Run nats-server on a port of its own choice, and a nats-py subscriber."""
    ports = folder / "ports"
    ports.mkdir()
    command = [nats_server(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(ports)]
    with ExitStack() as stack:
        server = stack.enter_context(Running("nats-server", command, folder))
        written = ports / f"nats-server_{server.pid}.ports"

        def port() -> int | None:
            with suppress(OSError, ValueError, LookupError):  # not there yet, or half written
                return int(json.loads(written.read_text())["nats"][0].rpartition(":")[2])
            return None

        server.wait_until(lambda: port() is not None)
        chosen = port() or 0
        # By path: no working directory of ours is needed.
        script = str(Path(__file__).with_name("nats_echo.py"))
        command = [sys.executable, script, f"nats://127.0.0.1:{chosen}"]
        handler = stack.enter_context(Running("nats-py", command, folder))
        handler.wait_until(lambda: "subscribed" in handler.log())
        yield Side("nats", "nats", chosen, {"server": server, "handler": handler})


def _frame(content: object) -> bytes:
    body = json.dumps(content).encode()
    return len(body).to_bytes(4, "little") + body


def echoes(port: int) -> bool:
    """Return whether a Bester server lets us in and its echo handler answers."""
    return takes(port, {})


def takes(port: int, data: object) -> bool:
    """Return whether a Bester server lets us in and its echo handler answers this message."""
    who = {"scope": "client", "authentication": {"username": "probe", "password": "probe"}}
    with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", port), PROBE_TIMEOUT_S) as probe:
        stream = probe.makefile("rb")
        for sent in (
            {"header": who, "payload": {"data": None, "type": "dummy"}},
            {"header": {}, "payload": {"type": "echo", "data": data, "id": "probe"}},
        ):
            probe.sendall(_frame(sent))
            header: dict[str, object] = {}
            while header.get("messageType") != "statusReport":
                answer = json.loads(stream.read(int.from_bytes(stream.read(4), "little")))
                header = answer["header"]
            if header["status"] != "good":
                return False
        return True
    return False


@contextmanager
def floor(folder: Path) -> Iterator[Side]:
    """The same libraries without bookkeeping: the least that this kind of server costs."""
    port, endpoint = free_port(), f"ipc://{folder}/floor.sock"
    script = str(Path(__file__).with_name("floor_server.py"))
    with ExitStack() as stack:
        server = stack.enter_context(Running("floor", [sys.executable, script, str(port), endpoint], folder))
        handler = stack.enter_context(Running("floor handler", [sys.executable, script, "handler", endpoint], folder))
        server.wait_until(lambda: echoes(port))
        yield Side("floor", "bester", port, {"server": server, "handler": handler})


def bester(*arguments: str) -> list[str]:
    """Return the command of `bester` with these arguments."""
    return [str(Path(sys.executable).with_name("bester")), *arguments]


def configuration(folder: Path, port: int, extra: str) -> str:
    """Write a bester.toml with this port and these lines; return its path."""
    file = folder / "bester.toml"
    file.write_text(
        '[server]\nname = "bench.example"\ndata_dir = "data"\n'
        f'[native]\ntcp4 = "127.0.0.1:{port}"\n[accounts]\nauth = "open"\n{extra}'
    )
    return str(file)


@contextmanager
def bester_up(folder: Path) -> Iterator[Side]:
    """`bester up`: broker and bridge in one process, the stock echo handler its child."""
    port = free_port()
    file = configuration(folder, port, '[handlers.echo]\napp = "bester.handlers.stock.echo:app"\n')
    with Running("bester up", bester("up", "-c", file), folder) as server:
        server.wait_until(lambda: echoes(port))
        yield Side("bester up", "bester", port, {"server": server}, f"ipc://{folder}/data/fabric.sock")


@contextmanager
def bester_split(folder: Path) -> Iterator[Side]:
    """Broker, bridge and handler in three processes, joined by the fabric over ipc."""
    port = free_port()
    fabric = f"ipc://{folder}/fabric.sock"
    file = configuration(folder, port, f'[fabric]\nlisten = ["{fabric}"]\nconnect = ["{fabric}"]\n')
    with ExitStack() as stack:
        broker = stack.enter_context(Running("bester broker", bester("broker", "-c", file), folder))
        bridge = stack.enter_context(Running("bester bridge", bester("bridge", "-c", file), folder))
        command = bester("handler", "bester.handlers.stock.echo:app", "--fabric", fabric)
        handler = stack.enter_context(Running("bester handler", command, folder))
        bridge.wait_until(lambda: echoes(port))
        yield Side("bester split", "bester", port, {"broker": broker, "bridge": bridge, "handler": handler}, fabric)


@contextmanager
def bester_cluster(folder: Path) -> Iterator[Side]:
    """Two brokers of one server with a PostgreSQL, two bridges at one port, and a handler at both brokers. The honest
    user's home is the second broker, as is that of the flood's one user."""
    port = free_port()
    fabrics = [f"ipc://{folder}/{broker}.sock" for broker in CLUSTER]
    connect = ", ".join(f'"{fabric}"' for fabric in fabrics)
    with ExitStack() as stack:
        database = Cluster("shared_buffers=16MB")
        stack.callback(database.close)
        brokers = []
        for broker, fabric in zip(CLUSTER, fabrics, strict=True):
            file = folder / f"{broker}.toml"
            file.write_text(
                f'[server]\nname = "bench.example"\nbroker = "{broker}"\ndata_dir = "data-{broker}"\n'
                f'[native]\ntcp4 = "127.0.0.1:{port}"\n[accounts]\nauth = "open"\n'
                f'[fabric]\nlisten = ["{fabric}"]\nconnect = [{connect}]\n[store]\nurl = "{database.url()}"\n'
            )
            brokers.append(stack.enter_context(Running(f"broker {broker}", bester("broker", "-c", str(file)), folder)))
        file = folder / f"{CLUSTER[0]}.toml"
        bridge = stack.enter_context(Running("bridge", bester("bridge", "-c", str(file), "--workers", "2"), folder))
        command = bester("handler", "bester.handlers.stock.echo:app", "-c", str(file))
        handler = stack.enter_context(Running("handler", command, folder))
        # A bridge serves when each of its processes has a broker; before, one of them may refuse a login.
        bridge.wait_until(lambda: " serves " in bridge.log())
        bridge.wait_until(lambda: handler.log().count(" serves ") >= len(CLUSTER) and echoes(port))
        processes = {"broker": brokers[0], "second broker": brokers[1], "bridge": bridge, "handler": handler}
        yield Side("bester cluster", "bester", port, processes, ",".join(fabrics), victim="second broker")
