"""Every relative link on a page leads to a file and a heading that exist, and READMEs name the modules there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))]
    if "node_modules" not in page.parts  # packages that npm has installed beside an example
)


def prose(page: Path) -> str:
    """Return a page's text without its code blocks."""
    return re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(
            name if name not in found else next(f"{name}-{n}" for n in range(1, 100) if f"{name}-{n}" not in found)
        )
    return found


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue  # another site's
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text(
        "# `sent` & queued: [why](page.md)?\n\n## Again\n\n## Again\n\n```sh\n# no heading\n```\n", encoding="utf-8"
    )
    good = ["other.md", "other.md#sent--queued-why", "other.md#again-1", "#here", "https://example.org/nowhere#x"]
    bad = ["gone.md", "other.md#no-heading", "other.md#again-2", "#there"]
    page.write_text("# Here\n\n" + " ".join(f"[x]({link})" for link in good + bad), encoding="utf-8")
    assert broken(page) == bad


def missing(readme: Path, folders: list[Path]) -> list[str]:
    """Return the modules of these folders that a README omits, and those in the README that do not exist."""
    text = readme.read_text(encoding="utf-8")
    modules = {module.stem for folder in folders for module in folder.glob("*.py") if not module.name.startswith("__")}
    everywhere = {module.name for module in readme.parent.rglob("*.py")}
    printed = re.findall(r"^# (\w+\.py)$", text, re.MULTILINE)  # the reader's own file
    gone = set(re.findall(r"\b[a-z_]+\.py\b", text)) - everywhere - set(printed)
    return sorted(module for module in modules if not re.search(rf"\b{module}\b", text)) + sorted(gone)


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.name)
def test_modules_that_a_page_names_exist(page: Path) -> None:
    modules = {module.name for folder in FOLDERS for module in folder.rglob("*.py")}
    text = page.read_text(encoding="utf-8")
    own = set(re.findall(r"(?:^# |python3? )(\w+\.py)", text, re.MULTILINE))  # the reader's own files
    assert set(re.findall(r"\b[a-z_]+\.py\b", text)) - modules - own == set()


@pytest.mark.parametrize(
    ("part", "folders"),
    [
        ("broker", ["bester/broker", "bester/broker/core", "bester/broker/wire"]),
        ("bridge", ["bester/bridge"]),
        ("handlers", ["bester/handlers"]),
        ("client", ["bester/client"]),
        ("cli", ["bester/cli"]),
    ],
)
def test_a_parts_readme_names_its_modules_and_no_others(part: str, folders: list[str]) -> None:
    readme = ROOT / part / "README.md"
    assert missing(readme, [readme.parent / folder for folder in folders]) == []


def test_modules_that_a_readme_lacks_or_makes_up_are_found(tmp_path: Path) -> None:
    for name in ("one.py", "two.py", "__init__.py"):
        (tmp_path / name).touch()
    readme = tmp_path / "README.md"
    readme.write_text("```python\n# mine.py\n```\n\none.py does it, three.py did, mine.py is yours\n", encoding="utf-8")
    assert missing(readme, [tmp_path]) == ["two", "three.py"]


def test_help_names_every_target_of_the_makefile() -> None:
    made = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) - set(re.findall(r"make ([a-z-]+)", made.stdout)) == set()
