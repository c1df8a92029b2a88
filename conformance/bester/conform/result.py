"""The result of a case: passed, failed or skipped, with the reason in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from bester.conform.cases import Case


class Unseen(Exception):  # noqa: N818 (a finding, the word that reports use)
    """An expected event was missing, or an unexpected one was observed; the text says which, in one line."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one case. `state` is `pass`, `fail` or `skip`; `detail` is the reason of the last two; `output`
    holds the last lines that the program under test has written."""

    case: Case
    state: str
    seconds: float
    detail: str = ""
    output: list[str] = field(default_factory=list)

    @property
    def breaks(self) -> bool:
        """Return whether this result makes the whole run fail."""
        return self.state == "fail" and self.case.required
