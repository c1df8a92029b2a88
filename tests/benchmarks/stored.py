"""`python -m tests.benchmarks.stored`: the cost of storing a message for a user who is away.

One build of `bester up`, one handler, the same senders (8 connections, 50 in flight each, 100 bytes): to a user who is
here and reads, and to one who is away, in turn; the second with a store that waits for the disk (`full`) and one that
does not (`normal`). Medians and ratios are printed, and everything that was started is ended.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import click

from tests.benchmarks.processes import Running, free_port

CONNECTIONS = 8
DEPTH = 50
PASSWORD = "a password for a benchmark"
READ_BYTES = 256 * 1024
PATIENCE_S = 60.0  # for one run; a server without an answer in that time is given up


def frame(content: object) -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "little") + body


class Reader:
    """Counts the frames of a stream, and those that begin like a good report."""

    GOOD = b'{"header":{"messageType":"statusReport","status":"good"}'

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """Return how many frames ended; raises ValueError where a report is bad."""
        buffer, at, found = self._rest + data, 0, 0
        while len(buffer) - at >= 4:
            end = at + 4 + int.from_bytes(buffer[at : at + 4], "little")
            if len(buffer) < end:
                break
            if buffer.startswith(b'{"header":{"messageType":"statusReport"', at + 4) and not buffer.startswith(
                self.GOOD, at + 4
            ):
                raise ValueError(buffer[at + 4 : end].decode())
            at, found = end, found + 1
        self._rest = buffer[at:]
        return found


def connect(port: int, user: str) -> socket.socket:
    """Log in, and return the connection once the server has accepted the login."""
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    header = {"scope": "client", "authentication": {"username": user, "password": PASSWORD}}
    connection.sendall(frame({"header": header, "payload": {"data": None, "type": "dummy"}}))
    reader = Reader()
    while not reader.feed(connection.recv(4096)):
        pass
    return connection


def run(port: int, to: str, messages: int) -> float:
    """Send so many messages to a user, wait for all reports; returns messages a second."""
    message = frame({"header": {}, "payload": {"type": "chat", "data": {"to": [to], "text": "x" * 70}, "id": "1"}})
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(connect(port, "alice"))
            selector.register(connection, selectors.EVENT_READ, Reader())
        sent = reported = 0
        began = time.monotonic()
        for key in selector.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.sendall(message * DEPTH)
            sent += DEPTH
        while reported < sent:
            ready = selector.select(PATIENCE_S)
            if not ready:
                raise TimeoutError(f"{sent - reported} reports are missing")
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                count = key.data.feed(key.fileobj.recv(READ_BYTES))
                reported += count
                more = min(count, messages - sent)
                if more > 0:
                    key.fileobj.sendall(message * more)
                    sent += more
        return reported / (time.monotonic() - began)


def read_all(connection: socket.socket, counted: list[int]) -> None:
    """Read and count frames, until the connection ends."""
    reader = Reader()
    while data := connection.recv(READ_BYTES):
        counted[0] += reader.feed(data)


def serve(stack: ExitStack, folder: Path, synchronous: str) -> int:
    """Start a server with two users; returns its port."""
    port = free_port()
    folder.mkdir()
    file = folder / "bester.toml"
    file.write_text(
        f'[server]\nname = "bench.example"\ndata_dir = "data"\n[native]\ntcp4 = "127.0.0.1:{port}"\n'
        f'[store]\nsynchronous = "{synchronous}"\nuser_messages = 1000000\nuser_bytes = 1073741824\nsender_share = 1\n'
        '[handlers.chat]\napp = "bester.handlers.stock.chat:app"\n'
    )
    bester = str(Path(sys.executable).with_name("bester"))
    for user in ("alice", "bob", "carol"):
        command = [bester, "user", "add", user, "--password-stdin", "-c", str(file)]
        subprocess.run(command, input=PASSWORD.encode(), check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)
    server = stack.enter_context(Running(f"bester up ({synchronous})", [bester, "up", "-c", str(file)], folder))
    server.wait_until(lambda: "chat serves chat" in server.log())
    return port


@click.command()
@click.option("--messages", type=click.IntRange(1000, 100_000), default=20_000, show_default=True, help="Of each run.")
@click.option("--runs", type=click.IntRange(1, 20), default=5, show_default=True, help="Of each kind, in turn.")
def main(messages: int, runs: int) -> None:
    """Compare sending to a user who is here with sending to an absent one."""
    rates: dict[str, list[float]] = {"here": [], "away, full": [], "away, normal": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b-")))
        full, normal = (serve(stack, folder / kind, kind) for kind in ("full", "normal"))
        here = stack.enter_context(connect(full, "bob"))
        counted = [0]
        reading = threading.Thread(target=read_all, args=(here, counted), daemon=True)
        reading.start()
        for number in range(runs + 1):
            for kind, port, to in (
                ("here", full, "bob"),
                ("away, full", full, "carol"),
                ("away, normal", normal, "carol"),
            ):
                rate = run(port, to, messages)
                if number:  # the first of each warms up
                    rates[kind].append(rate)
        here.shutdown(socket.SHUT_RDWR)
        reading.join(PATIENCE_S)
    base = statistics.median(rates["here"])
    click.echo(f"{messages:,} messages, 100 bytes, {CONNECTIONS} connections × {DEPTH}; {os.cpu_count()} CPUs")
    for kind, each in rates.items():
        middle = statistics.median(each)
        spread = f"{min(each):,.0f} to {max(each):,.0f}"
        click.echo(f"  {kind:<13} {middle:>9,.0f} messages/s   {middle / base:.2f} ×   ({spread})")


if __name__ == "__main__":
    main()
