"""A stand whose server knows others, over the fabric and by the native protocol; and checks that no state is left
over."""

from __future__ import annotations

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.wire.messages import Outcome, Relayed, Report
from tests.unit.core_stand import Stand

S2 = Link("server", b"s2")


def federated(accept: str = "listed", **limits: float) -> Stand:
    """A stand with a fabric link up to s2 and a native server s3 at 10.0.0.3."""
    routes = {
        "s2": Route("s2", fabric="ipc:///s2", accept_types=frozenset({"chat"})),
        "s3": Route("s3", native="10.0.0.3:2223"),
    }
    stand = Stand(
        Settings(
            "s1", open_accounts=True, accept=accept, routes=routes, hosts={"10.0.0.3": ("s3",)},
            limits=Limits(**limits),  # type: ignore[arg-type]  # the caller gives names and kinds
        )
    )  # fmt: skip
    stand.take(stand.router.on_server_ready("s2", stand.now))
    return stand


def finished(stand: Stand) -> None:
    """Check that no result is pending, no job held, and no report or outcome unread."""
    state = stand.state
    assert stand.router.idle
    assert (state.jobs, state.job_bytes, state.workers.waiting) == (0, 0, {})
    assert (state.deliveries, state.transfers) == (0, {})
    for link, messages in stand.inbox.items():
        assert not [m for m in messages if isinstance(m, Report | Outcome | Relayed)], f"told again: {link}"
