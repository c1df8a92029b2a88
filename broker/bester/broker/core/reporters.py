"""Reporters: the native servers that report on messages, and the outcome where a connection ends without a report.

besterd closes after it has read a message, and reports nothing; a server that is killed while it holds a message looks
the same. One connection does not tell the two apart:

    the server                                   closes in peace, without a report
    has reported before                          no answer: the message is sent again; the tenth time running on one
                                                 message, without a report on any other meanwhile, `sent`, and from
                                                 then on `sent`, until the server reports (if it is configured)
    is configured with `reports = false`         `sent`
    has never reported, and is configured        no answer; the third time running on one message `sent`, and from then
                                                 on `sent`, until the server reports
    has never reported, and is not configured    `sent`

The finding on a configured server is kept on disk. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from bester.broker.core.effects import Effects, Notice
from bester.broker.core.inspection import ReportersState
from bester.broker.core.settings import Route
from bester.broker.store_requests import SavePeer
from bester.broker.wire.messages import Meta
from bester.broker.wire.outcomes import SENT, failed

SILENT_ENDS = 3
"""Ends without a report on one message after which a configured server counts as one that never reports: a server that
dies three times running over one message is rarer than a besterd."""
REPORTING_ENDS = 10
"""The same for a server that has reported before, counted anew from each report: another program serves its address
now. Ten attempts take minutes; a server that dies so often over one message, and reports on no other, is rarer."""
MAX_STRANGERS = 4_096
"""Servers that are not configured and have reported; above it the one that reported longest ago is forgotten."""
MAX_COUNTED = 4_096
"""Messages whose ends without a report are counted; above it the one counted longest ago is forgotten."""
NO_ANSWER = failed("unreachable")


class Reporters:
    """Findings on native servers, by address: True where a server reports. `known` are those from the store."""

    def __init__(self, out: Effects, known: Mapping[str, bool]) -> None:
        self._out = out
        self._known = dict(known)
        self._strangers: OrderedDict[str, None] = OrderedDict()
        self._silent: OrderedDict[str, tuple[int, int]] = OrderedDict()  # silent ends running, by the message's id
        self._reports: dict[str, int] = {}  # reports of configured servers, by address: ends are counted anew from each

    def judge(self, route: Route, id_: str, outcome: str, meta: Meta) -> str:
        """Return the outcome of message `id_` at a native server, given the `outcome` and meta of its FORWARDED."""
        address = route.native or ""
        if meta.get("reported") is True:
            self._silent.pop(id_, None)
            self._has_reported(route, address)
            return outcome
        if outcome != SENT:
            self._silent.pop(id_, None)
            return outcome
        if not route.name:
            return NO_ANSWER if address in self._strangers else SENT
        if not route.reports:
            return SENT
        if self._known.get(address) is False:
            return SENT
        return self._silent_end(route, address, id_)

    def adopt(self, known: Mapping[str, bool]) -> None:
        """Take in the findings of another broker of this server, on servers of which nothing is known here."""
        self._known = {**known, **self._known}

    def inspect(self) -> ReportersState:
        """Return how many findings there are."""
        return ReportersState(len(self._known), len(self._strangers), len(self._silent))

    def knows(self, route: Route) -> bool:
        """Return whether a server is known to report, or not to report."""
        return not route.reports or (route.native or "") in self._known

    def _has_reported(self, route: Route, address: str) -> None:
        if not route.name:
            self._strangers[address] = None
            self._strangers.move_to_end(address)
            if len(self._strangers) > MAX_STRANGERS:
                self._strangers.popitem(last=False)
            return
        self._reports[address] = self._reports.get(address, 0) + 1
        if self._known.get(address) is not True:
            self._learn(address, reports=True)

    def _silent_end(self, route: Route, address: str, id_: str) -> str:
        reports = self._reports.get(address, 0)
        ends, counted_at = self._silent.pop(id_, (0, reports))
        ends = ends + 1 if counted_at == reports else 1
        has_reported = address in self._known
        if ends >= (REPORTING_ENDS if has_reported else SILENT_ENDS):
            self._learn(address, reports=False)
            say = f"write reports = false under [servers.{route.name}] to say so from the start"
            if has_reported:
                say = f"it has reported before: does another program serve {address} now? If that is so, {say}"
            self._out.calls.append(Notice("reports-nothing", {"server": route.name, "address": address, "say": say}))
            return SENT
        self._silent[id_] = (ends, reports)
        if len(self._silent) > MAX_COUNTED:
            self._silent.popitem(last=False)
        return NO_ANSWER

    def _learn(self, address: str, *, reports: bool) -> None:
        self._known[address] = reports
        self._out.writes.append(SavePeer(address, reports))
