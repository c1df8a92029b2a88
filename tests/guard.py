"""Guard two rules for the tests: no test pokes at private state outside its own unit's file, and no file is too long.

`make check` runs `python -m tests.guard`: one line for each breach, and exit status 1 where there is any.

A name with one leading underscore is private. A test may use such a name on its own `self`, where the same file
defines the name, and where the unit defines it that the test file belongs to: `tests/unit/test_core_cases.py` belongs
to `bester/broker/core/cases.py`. Every other test asks `inspect()`, so that the unit can be cut anew.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 600
"""A test file above this length is about more than one topic."""
PUBLIC = frozenset(
    {"_replace", "_asdict", "_fields", "_field_defaults", "_make"}  # methods of a NamedTuple
    | {"_exit", "_base_executable"}  # functions of os and sys
)
MUTANTS = frozenset({"tests/simulation/test_mutants.py", "tests/fuzz/test_mutants.py", "tests/chaos/breakages.py"})
"""Files of mutants: a mutant breaks a unit from the inside on purpose, and names the code that it breaks."""
PACKAGES = frozenset({"store"})
"""Packages that are one unit: the tests of `store` hold for every kind of store alike."""
PATCHES = frozenset({"setattr", "getattr", "delattr", "hasattr"})


def is_private(name: str) -> bool:
    """Return whether a name has one leading underscore, and is not one of those that the language gives."""
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC and name != "_"


def defined_in(tree: ast.AST) -> set[str]:
    """Return the private names that a module defines: functions, classes, variables, attributes of `self`, slots."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if is_private(name)}


def pokes(tree: ast.AST, own: frozenset[str] = frozenset(), *, in_class: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and name of each private name that is used on something else than an object's own `self`.

    `own` are the names that stand for the object whose class is being read: the first argument of its methods. A
    function outside a class has none, whatever its arguments are called.
    """
    match tree:
        case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args) | ast.Lambda(args=args):
            names = [arg.arg for arg in [*args.posonlyargs, *args.args]]
            own = own - set(names) | (set(names[:1]) if in_class else set())
        case ast.Attribute(value=ast.Name(id=name)) if name in own:
            return
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
            return
        case ast.Attribute(attr=name) if is_private(name):
            yield tree.lineno, name
        case ast.Call(func=function, args=[_, ast.Constant(value=str(name)), *_]) if is_private(name):
            if ast.unparse(function).rpartition(".")[2] in PATCHES:
                yield tree.lineno, name
        case ast.Call(func=ast.Name(id="vars")):
            yield tree.lineno, "vars()"
        case ast.Attribute(attr="__dict__"):
            yield tree.lineno, "__dict__"
        case ast.ImportFrom(names=aliases):
            yield from ((tree.lineno, alias.name) for alias in aliases if is_private(alias.name))
    for node in ast.iter_child_nodes(tree):
        yield from pokes(node, own, in_class=isinstance(tree, ast.ClassDef))


def units_of(test: str, root: Path) -> list[Path]:
    """Return the modules that a test file is about, by the longest start of its name that names any.

    `test_store_sqlite` is about `store/sqlite.py`, `test_core_cases_races` about `core/cases.py`, and `test_store`
    about the whole package `store`.
    """
    modules = list(root.glob("*/bester/**/*.py"))
    words = test.removeprefix("test_").split("_")
    for length in range(len(words), 0, -1):
        name = "_" + "_".join(words[:length])
        found = [path for path in modules if _ends(path.with_suffix(""), name)]
        found += [path for path in modules if path.parent.name in PACKAGES and _ends(path.parent, name)]
        if found:
            return found
    return []


def _ends(path: Path, name: str) -> bool:
    return ("_" + "_".join(path.parts)).endswith(name)


def breaches(path: Path, root: Path) -> Iterator[str]:
    """Yield the faults of one file of tests, a line each."""
    text = path.read_text(encoding="utf-8")
    where = path.relative_to(root).as_posix()
    lines = text.count("\n")
    if lines > MAX_LINES:
        yield f"{where}: {lines} lines, at most {MAX_LINES} are allowed: split it by topic"
    if where in MUTANTS:
        return
    tree = ast.parse(text)
    found = sorted(pokes(tree))
    if not found:
        return
    allowed = defined_in(tree)
    for unit in units_of(path.stem, root):
        allowed |= defined_in(ast.parse(unit.read_text(encoding="utf-8")))
    for line, name in found:
        if name not in allowed:
            yield f"{where}:{line}: {name} is private to another unit: ask inspect(), or test it through what is public"


def check(root: Path = ROOT) -> list[str]:
    """Return all breaches of the tests under this root."""
    return [breach for path in sorted((root / "tests").rglob("*.py")) for breach in breaches(path, root)]


def main() -> int:
    """Print the breaches; return the exit status."""
    found = check()
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
