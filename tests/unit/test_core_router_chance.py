"""The router under random input: nothing is raised and no state is left over."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.wire.messages import OPERATIONS, Command, Confirm, Deliver, Emit, Heartbeat, Hello, Malformed, Reply
from tests.unit.core_stand import Stand

TEXTS = st.sampled_from(["t", "alice", "s2", "s1", "127.0.0.1:9", "bester.x", "", "handler", "bridge", "hello-first"])
INTS = st.sampled_from([-1, 0, 1, 2, 3, 5001, 5002, 5003, 2**53])
ANY = st.recursive(
    st.none() | st.booleans() | INTS | TEXTS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
META = st.dictionaries(
    st.sampled_from(
        ["id", "root", "origin", "path", "server", "address", "scope", "types", "credit", "order", "epoch"]
    ),
    ANY,
) | st.just({"types": ["t"], "credit": 2, "order": {"t": "user"}})
COMMANDS = st.lists(
    st.builds(
        Command,
        st.sampled_from(["sendClients", "sendServers", "sendHandler", "sendAll"]),
        st.lists(TEXTS, max_size=3),
        st.sampled_from([b"1", b"{", b'"x"']),
        st.none() | TEXTS,
    ),
    max_size=2,
)
FIELD = {int: INTS, str: TEXTS, bytes: st.just(b"1"), type(None): st.none(), dict: META, list: st.just([])}


def messages() -> st.SearchStrategy[Any]:
    """Draw any value that the codec would let through."""
    kinds: list[st.SearchStrategy[Any]] = []
    for spec in OPERATIONS:
        if spec.message in (Reply, Emit, Confirm, Deliver):
            continue
        fields: list[st.SearchStrategy[Any]] = []
        for at, kind in enumerate(spec.fields):
            if kind is None:
                fields.append(ANY)
            elif at == spec.body:
                fields.append(st.just(b"1"))
            else:
                fields.append(st.one_of([FIELD[each] for each in sorted(kind, key=lambda each: each.__name__)]))
        kinds.append(st.builds(spec.message, *fields))
    kinds += [
        st.builds(Reply, INTS, INTS, COMMANDS, st.none()),
        st.builds(Emit, INTS, TEXTS, COMMANDS, META),
        st.builds(
            Confirm,
            INTS,
            st.lists(INTS, max_size=3),
            st.lists(st.builds(lambda *row: [*row], INTS, INTS, TEXTS), max_size=2),
        ),
        st.builds(Malformed, TEXTS, TEXTS, st.none() | INTS, st.none() | INTS),
        st.just(Hello(1, "handler", "h", {"types": ["t", "s2"], "credit": 2, "order": {"t": "user"}})),
        st.just(Hello(1, "bridge", "b", {})),
        st.just(Hello(1, "server", "s2", {})),
    ]
    return st.one_of(kinds)


LINKS = [Link("ipc", b"1"), Link("ipc", b"2"), Link("tcp", b"3"), Link("direct", b"4"), Link("server", b"s2")]


@given(
    st.lists(st.tuples(st.sampled_from(LINKS), messages(), st.sampled_from([0.0, 0.0, 0.3, 7.0, 40.0])), max_size=40)
)
@hypothesis_settings(max_examples=150)
def test_no_input_makes_the_router_raise_or_leak(steps: list[tuple[Link, Any, float]]) -> None:
    routes = {"s2": Route("s2", fabric="ipc:///x")}
    stand = Stand(Settings("s1", open_accounts=True, accept="open", routes=routes, limits=Limits(max_held=5)))
    stand.take(stand.router.on_server_ready("s2", stand.now))
    for link in LINKS[:3]:
        stand.say(
            link, Hello(1, ("handler", "bridge", "handler")[LINKS.index(link)], "n", {"types": ["t"], "credit": 2})
        )
    for link, message, seconds in steps:
        stand.say(link, message)
        if seconds:
            stand.now += seconds
            stand.tick()
    for link in LINKS:
        stand.take(stand.router.on_undeliverable(link, Heartbeat(), stand.now))
    stand.take(stand.router.on_server_lost("s2", "over", stand.now))
    for _ in range(40):
        stand.now += 2.0
        stand.tick()
    state = stand.state
    assert stand.router.idle
    assert (state.jobs, state.job_bytes, state.workers.waiting) == (0, 0, {})
    assert (state.deliveries, state.transfers) == (0, {})
