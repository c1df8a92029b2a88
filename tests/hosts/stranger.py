"""A server that is none, with nothing of Bester's own code: a peer on TLS that shows any certificate, or none.

`stranger.py send ADDRESS CA CLAIM [CERT KEY]` submits a message of type M1 in the name of the server CLAIM and prints
the answer. `stranger.py listen ADDRESS CERT KEY` accepts connections and prints the result of each handshake.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys

WAIT_S = 30.0


def send(address: str, ca: str, claim: str, *pair: str) -> None:
    """Print `answer JSON`, or `ended REASON` where the other side ended the connection."""
    context = ssl.create_default_context(cafile=ca)
    if pair:
        context.load_cert_chain(*pair)
    host, _, port = address.rpartition(":")
    header = {"scope": "server", "server": claim, "id": "m1"}
    payload = {"type": "M1", "data": "from a stranger", "id": "m1"}
    body = json.dumps({"header": header, "payload": payload}).encode()
    try:
        with (
            socket.create_connection((host, int(port)), WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as link,
        ):
            link.sendall(struct.pack("<I", len(body)) + body)
            data = b""
            while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
                piece = link.recv(65536)
                if not piece:
                    print("ended without an answer", flush=True)
                    return
                data += piece
            print("answer", data[4:].decode(), flush=True)
    except OSError as error:
        print("ended", error, flush=True)


def listen(address: str, cert: str, key: str) -> None:
    """Print `handshake good` or `handshake REASON` for each connection, until the process is ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))) as listener:
        print("listening", flush=True)
        while True:
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as link:
                    data = link.recv(65536)
                    print("handshake good, then", len(data), "bytes", flush=True)
            except OSError as error:
                print("handshake", error, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(*sys.argv[2:])
    else:
        listen(*sys.argv[2:])
