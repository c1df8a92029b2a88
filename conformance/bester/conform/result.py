"""What became of a case: passed, failed or skipped, with the reason in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from bester.conform.cases import Case


class Unseen(Exception):  # noqa: N818 (it is a finding, the word reports use)
    """What a case must see was not seen, or something else was; the text says which, in one line."""


@dataclass(frozen=True, slots=True)
class Result:
    """One case's end. `state` is `pass`, `fail` or `skip`; `detail` says why it is no pass; `output` is the last of
    what the program under test has written."""

    case: Case
    state: str
    seconds: float
    detail: str = ""
    output: list[str] = field(default_factory=list)

    @property
    def breaks(self) -> bool:
        """Whether this result makes the whole run fail."""
        return self.state == "fail" and self.case.required
