"""The table of checks in docs/operating.md, made from the checks: `python -m tests.checks_page` writes it anew."""

from __future__ import annotations

from pathlib import Path

from bester.broker.doctor.table import markdown

PAGE = Path(__file__).parents[1] / "docs" / "operating.md"
BEGIN, END = "<!-- checks -->\n", "<!-- /checks -->"


def written(text: str) -> str:
    """Return the page with the table of the code."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
