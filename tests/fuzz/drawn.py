"""`python -m tests.fuzz.drawn --minutes 1`: hypothesis, then atheris, draw bytes for every target, a while each.

Hypothesis draws nearly sound bytes, and shows the shortest that fails. Atheris changes bytes by what they reach in the
code; it is left out, with a line, where it is not installed. Exit status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.fuzz.strategies import BYTES
from tests.fuzz.targets import TARGETS

EXAMPLES = 500
"""Drawn between two looks at the clock."""
SLOWEST_S = 20
"""An input that takes so long is a hang."""
LATEST_S = 120.0
"""Time of atheris beyond its own limit: it starts in some seconds, and ends by itself."""
MEMORY_MB = 1024
"""Resident memory that means growth: a target alone needs a tenth of that."""
ROOT = Path(__file__).parents[2]


def hypothesis_draws(
    name: str, seconds: float, first_seed: int, examples: int = EXAMPLES, *, shrink: bool = True
) -> tuple[int, str]:
    """Draw for a target for so long, `examples` at least; return the number of inputs, and the first failure, empty
    where there is none."""
    until = time.monotonic() + seconds
    tried = 0
    for seed in range(first_seed, first_seed + 10**9):

        def check(data: bytes) -> None:
            nonlocal tried
            tried += 1
            TARGETS[name](data)

        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
        options = settings(
            max_examples=examples, deadline=None, database=None, phases=phases, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            seeded(seed)(options(given(BYTES[name])(check)))()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
            notes = "\n".join(getattr(error, "__notes__", ()))
            return tried, f"{name}, hypothesis, seed {seed}: {type(error).__name__}: {error}\n{notes}"
        if time.monotonic() >= until:
            break
    return tried, ""


def atheris_draws(name: str, seconds: float) -> str:
    """Run atheris on a target, in a process of its own; return its output where it has found something."""
    with tempfile.TemporaryDirectory(prefix="bester-fuzz-") as directory:
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(_samples(name)):
            (corpus / str(number)).write_bytes(data)
        most = f"-max_total_time={max(1, round(seconds))}"
        try:
            done = subprocess.run(
                [
                    sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), most,
                    f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MB}", "-max_len=4096", "-print_final_stats=1",
                    f"-artifact_prefix={directory}/",
                ],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + LATEST_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{name}, atheris: it did not end {LATEST_S:g} s after its time"
        text = done.stdout + done.stderr
        if done.returncode == 0:
            executed = [line.split()[-1] for line in text.splitlines() if "number_of_executed_units" in line]
            print(f"{name}: atheris, {executed[0] if executed else '?'} inputs, nothing found", flush=True)
            return ""
        inputs = [each.read_bytes() for each in Path(directory).iterdir() if each.is_file()]
        return f"{name}, atheris: exit status {done.returncode}\n{text[-6000:]}\ninputs: {inputs}"


def _samples(name: str) -> list[bytes]:
    """Return some inputs to begin with."""
    samples: list[bytes] = []

    @seeded(1)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BYTES[name])
    def collect(data: bytes) -> None:
        samples.append(data)

    collect()
    return samples


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; say for instance `make fuzz MINUTES=10`\n")


def main() -> int:
    parser = Parser(prog="python -m tests.fuzz.drawn", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long each of the two draws, over all targets")
    parser.add_argument("--only", choices=TARGETS, action="append", help="this target; may be given again")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="hypothesis' first seed")
    options = parser.parse_args()
    if not 0 < options.minutes <= 100_000:
        parser.error("--minutes is a number above 0")
    names = options.only or list(TARGETS)
    seconds = options.minutes * 60 / len(names)
    found = []
    for name in names:
        tried, wrong = hypothesis_draws(name, seconds, options.seed)
        found += [wrong] if wrong else []
        print(wrong or f"{name}: hypothesis, {tried} inputs, nothing found", flush=True)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install 'bester[fuzz]'): hypothesis alone has drawn", flush=True)
        return 1 if found else 0
    for name in names:
        wrong = atheris_draws(name, seconds)
        found += [wrong] if wrong else []
        if wrong:
            print(wrong, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
