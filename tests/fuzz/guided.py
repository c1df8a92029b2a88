"""Atheris on one target, guided by the branches that an input takes in Bester's code; arguments are libFuzzer's.

To be run in a process of its own, `python -m tests.fuzz.guided TARGET CORPUS …`, before anything of Bester's is
imported: the modules are instrumented as they are imported.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["bester"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
