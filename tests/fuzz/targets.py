"""Readers of strangers' bytes, each as one function of bytes: hypothesis and atheris draw the bytes.

A target raises whatever is wrong, and returns nothing. Several frames are written as one piece of bytes by `joined`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bester.broker.core.effects import Link
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import Hello
from bester.broker.zap import KEY_BYTES, zap_reply
from tests.fuzz import frames, router, wire
from tests.fuzz.play import must, quiet

MAX_FRAMES = 12
KNOWN_KEY = bytes(range(KEY_BYTES))
KNOWN_TEXT = "009c61o!#m2NH?C3>iWS5d]J*6CRx17-skh9337x"
"""KNOWN_KEY in Z85."""
STRANGER = Link("tcp", b"0:stranger")


def joined(pieces: list[bytes]) -> bytes:
    """Return frames as one piece of bytes, which `cut` cuts again: each behind its length in two bytes."""
    return b"".join(struct.pack("<H", len(piece)) + piece for piece in pieces)


def cut(data: bytes) -> list[bytes]:
    """Return the frames in any bytes, at most MAX_FRAMES; the last is as long as there are bytes."""
    pieces: list[bytes] = []
    while len(data) >= 2 and len(pieces) < MAX_FRAMES:
        (length,) = struct.unpack("<H", data[:2])
        pieces.append(data[2 : 2 + length])
        data = data[2 + length :]
    return pieces


def framing(data: bytes) -> None:
    """A stream before the login, in pieces as long as the first byte says, and as a whole."""
    size = data[0] % 61 + 1 if data else 1
    stream = data[1:]
    frames.check_stream(stream, [stream[at : at + size] for at in range(0, len(stream), size)])


def native(data: bytes) -> None:
    """The body of a native frame: of a stranger, a client, a server, and the report of a server."""
    frames.check_body(data)


def fabric(data: bytes) -> None:
    """A ZeroMQ message of anybody on the fabric."""
    pieces = cut(data)
    if pieces:
        wire.check_frames(pieces)


def servers(data: bytes) -> None:
    """Messages of a peer who is a listed server, or says so, to a router with honest parties; theirs go on meanwhile.

    The first byte chooses the settings, and the peer: the link that this server opened, a server that has joined, or a
    stranger.
    """
    settings, peer = divmod(data[0] if data else 0, 3)
    world = router.World(settings, quiet)
    link = router.LINKED if peer == 0 else STRANGER
    if peer:
        world.parties[STRANGER] = router.Party(STRANGER, "server")
    if peer == 1:
        world.parties[STRANGER].roles.add("server")
        world.say(STRANGER, [Hello(1, "server", "s9")])
    for piece in cut(data[1:]):
        for message in decode([piece]):
            if router.claims_honest(message):
                continue
            if isinstance(message, Hello) and message.role in router.SAYS:
                world.parties[link].roles.add(message.role)
            world.say(link, [message])
        world.honest.turn()
    world.wait(1.0, evil=True)
    world.honest.turn()


def zap(data: bytes) -> None:
    """A request for the admission of a party, as libzmq makes it of what the party sends."""
    request = cut(data)
    reply, refused = zap_reply(request, {KNOWN_TEXT})
    must(len(reply) == 6 and all(type(part) is bytes for part in reply), "a reply has six frames")
    must(reply[:2] == [*request, b"", b""][:2], "and is that to the request")
    is_known = len(request) > 6 and request[5:7] == [b"CURVE", KNOWN_KEY]
    must((reply[2] == b"200") is is_known and (refused is None) is is_known, "a known key is let in, and nobody else")
    must(reply[4] == (KNOWN_TEXT.encode() if is_known else b""), "under its own name")
    if refused is not None:
        must(len(refused[1]) in (0, 40), "a key is 40 characters, or none")
        "".join(refused).encode()


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "framing": framing,
    "native": native,
    "fabric": fabric,
    "servers": servers,
    "zap": zap,
}
