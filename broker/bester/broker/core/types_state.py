"""Answer to an operator's question `types`: message types, their workers and contracts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest
from typing import Any

from bester.broker.core.auth import AuthHandler
from bester.broker.core.contracts import Contracts
from bester.broker.core.peer import Peer
from bester.broker.core.pools import Worker
from bester.broker.core.shadows import Shadow, Shadows
from bester.broker.core.workers import Workers

MAX_ROWS = 1_000
"""Types in one answer, some milliseconds; the next question may go on behind these."""
MAX_BYTES = 1024 * 1024
"""Bytes of one answer, some milliseconds; those of the last type may be above."""
WORKER_BYTES = 200
"""The same of one worker of a type: a thousand handlers may serve a thousand types each."""
MAX_CONTRACT_BYTES = 16 * 1024 * 1024
"""Bytes of the schemas of one type, of which else none is shown: an answer must pass as one message."""


def types_of(
    argument: object, peers: Iterable[Peer], contracts: Contracts, workers: Workers, shadows: Shadows
) -> dict[str, Any] | None:
    """Return a page of `types`, a list of maps, by name; `left`, the number of types behind it, and with those `next`,
    the `from` of the next question's argument. None where the argument is none.

    Each map has `type`, `waiting` (messages), `workers` (maps of `name`, `version`, `software`, `credit`, `inflight`,
    `leaving` and `contract`, an index or None), `contracts` (schemas) and `differ`: the workers do not agree on the
    contract. `shadows` are maps of `name`, `version`, `software`, `credit`, `inflight`, `leaving`, and the counts of
    `shadows.Counts`.
    """
    start = "" if argument is None else argument.get("from", "") if type(argument) is dict else None
    if type(start) is not str:
        return None
    by_type: dict[str, list[Peer]] = {}
    for peer in peers:
        if peer.role == "handler":
            for type_ in peer.types:
                if type_ > start:
                    by_type.setdefault(type_, []).append(peer)
    rows = []
    room = MAX_BYTES
    for type_ in nsmallest(MAX_ROWS, by_type):
        if room <= 0:
            break
        found = contracts.of(type_)
        known = [each for each in found if each is not None]
        size = sum(len(each.text) for each in known)
        schemas = [each.schema for each in known] if size <= MAX_CONTRACT_BYTES else []
        room -= (size if schemas else 0) + WORKER_BYTES * len(by_type[type_])
        numbers = {each.text: number for number, each in enumerate(known)}
        rows.append(
            {
                "type": type_,
                "waiting": workers.queues.count(type_),
                "workers": [
                    _worker(peer, type_, contracts, numbers) for peer in by_type[type_] if peer.worker or peer.auth
                ],
                "shadows": [_shadow(peer, type_, shadows) for peer in by_type[type_] if peer.shadow is not None],
                "contracts": schemas,
                "differ": len(found) > 1,
            }
        )
    left = len(by_type) - len(rows)
    return {"types": rows, "left": left, **({"next": rows[-1]["type"]} if left else {})}


def _worker(peer: Peer, type_: str, contracts: Contracts, numbers: dict[bytes, int]) -> dict[str, Any]:
    holder = peer.worker or peer.auth
    assert holder is not None
    contract = contracts.at(peer.link, type_)
    return {
        **_facts(peer, holder),
        "contract": None if contract is None else numbers.get(contract.text),
    }


def _shadow(peer: Peer, type_: str, shadows: Shadows) -> dict[str, Any]:
    assert peer.shadow is not None
    return {**_facts(peer, peer.shadow), **shadows.counts(peer.shadow, type_)}


def _facts(peer: Peer, holder: Worker | Shadow | AuthHandler) -> dict[str, Any]:
    return {
        "name": peer.name,
        "version": peer.version,
        "software": peer.software,
        "credit": holder.credit,
        "inflight": len(holder.inflight),
        "leaving": peer.leaving,
    }
