"""Every bound of the bridge, with its reason. A bridge without one of these could be filled up or held for ever."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one bridge; sizes in bytes, times in seconds."""

    max_frame: int = MIB
    """A client's frame; larger things belong elsewhere, with a reference to them in the message."""
    first_frame: int = 4 * KIB
    """Of a stranger, enough for a login and a short message, and cheap to hold ten thousand times."""
    first_frame_s: float = 5.0
    """How long a stranger may take over it; a person is not typing here."""
    login_s: float = 30.0
    """How long the broker may take over a login: a queue of password checks, not one of them."""
    logins_in_flight: int = 4_096
    """A storm of reconnecting clients; how many passwords wait to be checked is bounded by the broker itself."""
    max_connections: int = 20_000
    """In all; twice the load one bridge is made for. The process's descriptors bound it too."""
    max_connections_per_address: int = 1_000
    """One address cannot take all the places. Loopback and Unix peers (often proxies) are bounded by the total."""
    max_connections_per_user: int = 1_000
    """Each gets a copy of each message to the user: this is the factor by which one message may grow."""
    out_queue: int = 4 * MIB
    """What may wait for one reader who is slower than what he is sent; what others send him above it has failed, and
    costs him nothing: or anybody could have anybody else disconnected. Less than `unreported_bytes`: one reader must
    not fill the window of one who sends."""
    out_answers: int = 16 * MIB
    """The same with the answers to what he sent himself, which cannot fail; above it he is disconnected."""
    out_total: int = 1024 * MIB
    """What may wait for all readers together; above it each has but `out_pause`. Memory."""
    out_pause: int = 256 * KIB
    """With so much waiting for it, a connection is not read from: who does not listen is not listened to."""
    write_chunk: int = 256 * KIB
    """Handed to the socket at once; what left the process is known chunk by chunk."""
    stalled_s: float = 30.0
    """A reader that takes nothing, or whose queue stays full, for so long is gone, whatever TCP believes."""
    unreported: int = 1_024
    """Messages of one connection that wait for their report; above it the connection is not read from."""
    unreported_bytes: int = 8 * MIB
    """The same in bytes, for large messages; one always passes."""
    hold_s: float = 600.0
    """How long a message is held for a broker that does not answer, from when it came: a restart takes seconds, a
    repair minutes. A broker remembers what it took for longer than this, so that nothing is carried out twice."""
    held_bytes: int = 256 * MIB
    """What may wait for its report in all, with or without a broker; above it only those are read from who have less
    than a fair share of it. So it may become twice as much, and no more. Memory."""
    gone_messages: int = 65_536
    """Messages of clients that have gone, kept until their report in case the broker dies; what is above is not
    submitted again. A server's whole load for a second, and nobody waits for these."""
    gone_bytes: int = 32 * MIB
    """The same in bytes."""
    ahead_bytes: int = MIB
    """What a client that acknowledges may say behind a full window: acknowledgements among it may be what makes room
    there. It is looked through for them, and the rest waits."""
    questions: int = 16
    """Questions of one connection that wait for their answer; each costs the broker a look at the disk. With so many it
    is not read from."""
    ack_s: float = 30.0
    """How long a client that acknowledges may take over it, from when the frame has left: as long as a dead connection
    takes to be found dead, so that being slow is not worse than being gone."""
    ack_unread_s: float = 30.0
    """What comes to that where the client is not read from meanwhile, because its window is full: longer than handlers
    usually take to make room in it."""
    unacked: int = 1_024
    """Frames of one connection that wait for their acknowledgement; what more is sent to it has failed."""
    unacked_bytes: int = 8 * MIB
    """The same in bytes, for large frames; one always passes."""
    drain_s: float = 30.0
    """How long one who has stopped sending may wait for reports; longer than a handler that is waited for."""
    server_s: float = 90.0
    """How long another server's connection is kept for the report on its message: longer than a server waits for one
    (a minute, and the time to connect), for an end that comes first must not be taken for an answer."""
    linger_s: float = 1.0
    """How long we read on after our last word, so that closing does not reset the connection under it."""
    forwards_per_address: int = 128
    """Connections to one other server at once. Servers in a ring wait for each other once a round, so not a few."""
    forwards: int = 512
    """The same to all of them: descriptors."""
    forwards_waiting: int = 4_096
    """Messages waiting for their turn; above it they fail as `overloaded`."""
    forwards_unknown: int = 1_024
    """Of them, those to one address whose host is still looked up: a name server that hangs must leave room for what
    goes elsewhere."""
    forward_s: float = 5.0
    """From the broker's asking to the other server's report, where the broker names no other time."""
    connect_s: float = 5.0
    """How long a connection to another server may take to be made: three packets lost in a row."""
    forward_report: int = 16 * MIB
    """The longest report of another server: it names recipients, up to 10,000 of them, whatever clients may send."""
    informer_connections: int = 64
    """Handlers ask now and then; there are not many of them."""
    informer_frame: int = 64 * KIB
    """A question is a name at most."""
    owed: int = 65_536
    """Words the broker must hear (of sessions, of deliveries) that its link had no room for; above it it is no link."""

    @property
    def fair_bytes(self) -> int:
        """What each connection may have, were there as many as there may be."""
        return self.held_bytes // self.max_connections
