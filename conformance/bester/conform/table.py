"""Write the tables of a page from the cases: `python -m bester.conform.table docs/conformance-cases.md`.

The module also finds the normative sentences of a protocol's page: each must be quoted by a case, or by
conformance/unseen.toml with the reason why no case can test it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from bester.conform.cases import SIDES, directory, load

PAGE = "conformance-cases.md"
UNSEEN = "unseen.toml"
_RULE = re.compile(r"\b(must|never|always|do not|at most)\b", re.IGNORECASE)
_ENDS = re.compile(r"(?<=[.:;?!])\s+(?=[A-Z`*\"(\[-])| \| | - (?=\*\*|[A-Z`])")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

_PAGES = {"handler": "fabric-protocol.md", "native": "native-protocol.md"}


def sentences(page: str) -> list[str]:
    """Return the sentences of a page that say must, never, always, do not or at most; programs do not count."""
    text = " ".join(_CODE.sub("", page).split())
    return [sentence for sentence in _ENDS.split(text) if _RULE.search(sentence)]


def unseen(side: str) -> dict[str, str]:
    """Return the quoted sentences of a side that no case can test, with the reason."""
    entries = tomllib.loads((directory(side).parent / UNSEEN).read_text(encoding="utf-8"))[side]
    return {" ".join(entry["rule"].split()): entry["why"] for entry in entries}


def table(side: str) -> str:
    """Return the rows of a side's cases, as Markdown."""
    rows = ["| number | case | must be seen | the page says |", "|---|---|---|---|"]
    for case in load(side):
        needs = f" ({', '.join(sorted(case.needs))})" if case.needs else ""
        mild = "" if case.required else " *recommended*"
        rule = case.rule.replace("](#", f"]({_PAGES[side]}#")  # a link within its page leads there from here
        cells = (f"{case.number}{mild}", f"{case.title}{needs}", case.seen, rule)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def filled(page: str) -> str:
    """Return the page with its tables replaced."""
    for side in SIDES:
        count = len(load(side))
        mark = re.compile(rf"<!-- {side}: .*? -->\n.*?<!-- end -->", re.DOTALL)
        rows = f"<!-- {side}: {count} cases -->\n{table(side)}<!-- end -->"
        page = mark.sub(lambda _, rows=rows: rows, page)  # type: ignore[misc]  # a default binds this turn's rows
    return page


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
