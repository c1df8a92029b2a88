"""Every bound of the bridge, with its reason. A bridge without one of these could be filled up, or held for ever."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one bridge; sizes in bytes, times in seconds."""

    max_frame: int = MIB
    """Frame of a client; larger things belong elsewhere, with a reference to them in the message."""
    first_frame: int = 4 * KIB
    """First frame of a stranger: enough for a login and a short message, and cheap to hold ten thousand times."""
    first_frame_s: float = 5.0
    """Time of a stranger for the first frame; a program writes it, not a person."""
    login_s: float = 30.0
    """Time of the broker for a login: a queue of password checks, not one of them."""
    logins_in_flight: int = 4_096
    """A storm of reconnecting clients; the broker itself bounds the passwords that wait to be checked."""
    frame_s: float = 30.0
    """Time of a client for a frame, from its first byte: a lost packet is sent again several times meanwhile."""
    frame_rate: int = 8 * KIB
    """Bytes a second of the slowest link; a frame has this much more time for its length. Slower than any link of a
    phone, and a frame of 1 MiB that is parked is gone within three minutes."""
    unfinished_bytes: int = 64 * MIB
    """Frames that have begun and not ended, over all connections; above the bound the connections that have held most
    for longest make way. 64 of the largest frames, or four of the largest that can be configured: a frame is under way
    for moments only. Memory."""
    max_connections: int = 20_000
    """Twice the load that one bridge is made for. The descriptors of the process are another bound."""
    max_strangers: int = 5_000
    """Connections that have not sent a login yet; above the bound the oldest of them makes way. As many as the logins
    of a storm of reconnecting clients."""
    stranger_s: float = 1.0
    """Time during which a stranger does not make way for that bound: clients that all come at once, after a restart,
    have sent logins that are still to be read. Longer than a round trip and a busy turn of the loop. Where all places
    are taken the time does not count."""
    max_connections_per_address: int = 1_000
    """No address, nor IPv6 /64, which one host has by itself, can take all the room. Loopback and Unix peers (often
    proxies) are bounded by the total."""
    messages_per_s: float = 0.0
    """Messages a second of one user, over all of their connections; 0: as many as the window lets through."""
    max_connections_per_user: int = 1_000
    """Each connection gets a copy of each message to the user: the factor by which one message may grow."""
    out_queue: int = 4 * MIB
    """Bytes that wait for one slow reader. Frames of others above the bound fail, and the reader is not cut for them:
    or anybody could have anybody else disconnected. Less than `unreported_bytes`: one reader must not fill the window
    of a sender."""
    out_answers: int = 16 * MIB
    """The same with the answers to the reader's own frames, which cannot fail; above the bound the reader is
    disconnected."""
    out_total: int = 1024 * MIB
    """Bytes that wait for all readers together; above the bound each reader has but `out_pause`. Memory."""
    out_pause: int = 256 * KIB
    """Bytes in a connection's queue above which the connection is not read from: a peer that does not read is not read
    from."""
    write_chunk: int = 128 * KIB
    """Handed to the socket at once; the bridge learns chunk by chunk which bytes have left the process. One or two
    milliseconds of a turn, and above the 64 KiB up to which short frames are joined: behind a longer chunk others
    have their turn."""
    turn_bytes: int = 4 * MIB
    """Written to all connections in one turn of the loop, each write counted as 8 KiB more: some 500 short frames, or
    30 chunks. What is left is for the next turns, in which senders take turns."""
    turn_write_s: float = 0.002
    """Time for these writes, a quarter of it more for large ones, and as much for the deliveries that a turn has left
    to the next ones. A write may cost 20 µs a KiB where machine and reader are busy: `turn_bytes` alone would be 80 ms,
    and a message waits for four or five turns."""
    turn_frames: int = 2_000
    """Frames of deliveries to several connections that are queued in one turn, some milliseconds; one delivery always
    passes. The broker's next messages wait."""
    stalled_s: float = 30.0
    """A reader that takes nothing, or whose queue stays full, for so long is gone, whatever TCP believes."""
    unreported: int = 1_024
    """Unreported messages of one connection; above the bound the connection is not read from."""
    unreported_bytes: int = 8 * MIB
    """The same in bytes, for large messages; one always passes."""
    hold_s: float = 600.0
    """Time from a message's arrival during which the message is held for a broker that does not answer: a restart takes
    seconds, a repair minutes. A broker remembers messages for longer than this, so that none is carried out twice."""
    held_bytes: int = 256 * MIB
    """Unreported messages in all, with or without a broker. A sender (a user, with all connections) may have no more
    than what is left of it by all: one alone half, two a third each. Senders with less than a fair share are read from
    in any case, so that the size at most doubles. Memory."""
    held_messages: int = 16_384
    """The same in messages, where the broker names no other number: enough to keep every handler busy, and few enough
    to be served within a second."""
    turn_units: int = 128
    """Frames handled in one turn of the loop, from all connections together (a large frame counts for several): one or
    two milliseconds of work. What is more waits for the next turn, and its connection is not read from. Everybody waits
    for a few turns; twice as many frames in each gain nothing. Half of them while there is somebody with little to say:
    so much shorter is the wait, and a fourteenth less is served."""
    turn_quantum: int = 32
    """The same of one sender, before the next sender's turn where several wait."""
    turn_s: float = 0.0025
    """Time for frames that have waited in one turn of the loop, should they be costly: 20 µs for each of the turn's
    units, as most cost."""
    gone_messages: int = 65_536
    """Messages of clients that have gone, kept until their report in case the broker dies; messages above the bound are
    not submitted again. A server's whole load for a second, and no client waits for these."""
    gone_bytes: int = 32 * MIB
    """The same in bytes."""
    ahead_bytes: int = MIB
    """Frames of an acknowledging client that are read behind a full window: acknowledgements among them may make room
    in the window. Only acknowledgements are handled; the other frames wait."""
    questions: int = 16
    """Unanswered questions of one connection; each costs the broker a read of the disk. At the bound the connection is
    not read from."""
    ack_s: float = 30.0
    """Time of a client for an acknowledgement, from the moment when the frame has left: as long as it takes to find a
    dead connection dead, so that being slow is not worse than being gone."""
    ack_unread_s: float = 30.0
    """Additional time while the client is not read from, because its window is full: longer than handlers usually take
    to make room in the window."""
    unacked: int = 1_024
    """Unacknowledged frames of one connection; frames above the bound fail."""
    unacked_bytes: int = 8 * MIB
    """The same in bytes, for large frames; one always passes."""
    drain_s: float = 30.0
    """Time of a client that sends no more for its reports: as long as a handler may take for an answer by default."""
    server_s: float = 90.0
    """Time of a native server's connection for the report on its message: longer than a server waits for a report (a
    minute, and the time to connect), because an earlier end must not be taken for an answer."""
    linger_s: float = 1.0
    """Time of reading on after the last frame, so that closing does not reset the connection before the peer has
    read."""
    forwards_per_address: int = 128
    """Connections to one other server at once. Servers in a ring wait for each other once a round, so not a few."""
    forwards: int = 512
    """Connections to all other servers: descriptors. A server has no more than what is left by all, and those that are
    not configured have half of them together; a configured one always gets one. A server that answers nothing holds
    its connections for a minute."""
    forwards_waiting: int = 8_192
    """Messages waiting for a connection, in the same shares; messages above a share fail as `overloaded`."""
    forwards_unknown: int = 1_024
    """Waiting messages to one address whose host is still looked up: a name server that hangs must leave room for other
    addresses."""
    forward_s: float = 5.0
    """Time from the broker's request to the other server's report, where the broker names no other time."""
    connect_s: float = 5.0
    """Time for a connection to another server to be made: three packets lost in a row."""
    forward_report: int = 16 * MIB
    """Longest report of another server: up to 10,000 recipients are named in one, whatever the size of clients'
    frames. What comes before the report counts as well."""
    forward_reports: int = 64 * MIB
    """Reports of other servers that have begun and not ended, over all connections; above the bound the server that has
    held most for longest loses connections. Hundreds of usual ones, or four of the longest. Memory."""
    informer_connections: int = 64
    """Handlers ask now and then; there are not many of them."""
    informer_frame: int = 64 * KIB
    """A question is a name at most."""
    link_backlog: int = 65_536
    """Messages that the broker must get (sessions, deliveries) and that wait for room on the link, beside two for each
    connection that there may be; a link with more waiting is given up, and the broker told all sessions anew."""

    @property
    def fair_bytes(self) -> int:
        """Fair share of one connection, were there as many connections as allowed."""
        return self.held_bytes // self.max_connections

    @property
    def link_room(self) -> int:
        """Messages that wait for room on the link to a broker before the link is given up."""
        return self.link_backlog + 2 * self.max_connections

    @property
    def stranger_places(self) -> int:
        """Places of strangers: a quarter of all at most, so that logged-in sessions keep the others; but never so few
        that a handful of clients that come at once is in each other's way."""
        return min(self.max_strangers, max(self.max_connections // 4, 64))

    @property
    def login_places(self) -> int:
        """Logins under way at once: half of all places at most, for the same reason."""
        return min(self.logins_in_flight, max(self.max_connections // 2, 64))


COUNTED = (
    "max_frame", "first_frame_s", "login_s", "logins_in_flight", "drain_s", "server_s", "out_queue", "out_total",
    "out_answers", "stalled_s", "unacked", "unacked_bytes", "ack_s", "gone_messages", "gone_bytes", "hold_s",
    "link_backlog", "forwards_waiting", "forwards_unknown", "forward_reports", "informer_connections",
)  # fmt: skip
"""Bounds at which something is refused, dropped or cut, each counted by its name; the counts of other such bounds have
names of their own, see ALSO_COUNTED."""
ALSO_COUNTED = {
    "first_frame": "refused_first_frames", "max_connections": "refused_connections",
    "max_connections_per_address": "refused_connections", "max_connections_per_user": "refused_sessions",
    "messages_per_s": "refused_messages", "max_strangers": "made_way", "unfinished_bytes": "frames_over",
    "frame_s": "frames_late", "frame_rate": "frames_late",
}  # fmt: skip
"""Figures of a bridge that count what happened at other bounds."""
