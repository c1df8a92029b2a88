"""The page of codes shows every code with its meaning."""

from pathlib import Path

from bester.broker.wire.codes import CODES

PAGE = Path(__file__).parents[2] / "docs" / "codes.md"


def test_page_shows_the_table() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    expected = [
        [f"`{code}`", "temporary" if row.temporary else "permanent", row.meaning] for code, row in CODES.items()
    ]
    assert rows == expected
