"""The machine of one server in a chaos run: its wall clock, its boot id, and its name lookups.

Where the test may mount (root on Linux), each program of the server runs in a mount namespace with an /etc/hosts, an
/etc/resolv.conf and an /etc/nsswitch.conf of the run's, and with a boot id of the machine's own. The namespaces end
with the programs. Elsewhere the machine has a clock alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from functools import cache
from math import inf
from pathlib import Path
from random import Random

from tests.chaos.happened import Happened
from tests.chaos.journal import now_s
from tests.wall_clock import WallClock

HOUR_S = 3600.0
SPANS_S = (HOUR_S, 24 * HOUR_S, 60 * 24 * HOUR_S)
"""Upper bounds of a clock's error in seconds: each as often as the others."""
SETTLED_S = 4.0
"""Seconds between a set of the clock and a boot: time that no disk knows of looks as if the machine had been off."""
SLEEPS, BOOTS = 0.6, 0.6
"""Shares of the frozen servers that sleep, and of the killed ones that come back after a boot."""
HELD_S = 20.0
"""Seconds from a boot until the programs have seen their clock; until then the clock is not set ahead, for the same
reason."""
SHOWN = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/proc/sys/kernel/random/boot_id")
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
SWITCH = "hosts: files dns\n"
RESOLVER = "nameserver {address}\noptions timeout:4 attempts:1\n"
"""Resolver settings: a lost question takes 4 s, longer than anybody waits for its answer."""


@cache
def may_mount() -> bool:
    """Return whether the programs may be given files of their own."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return False
    script = " && ".join(f"mount --bind {path} {path}" for path in SHOWN)
    return subprocess.run([unshare, "-m", "sh", "-c", script], capture_output=True, check=False).returncode == 0


class Machine:
    """The machine of one server. `directory` is for its files; `resolver` is the address of the name server to ask."""

    def __init__(self, server: str, directory: Path, resolver: str, happened: Happened, random: Random) -> None:
        self.server = server
        self._happened = happened
        self._random = random
        self._clock = WallClock(directory / f"{server}.clock")
        self._boot = directory / f"{server}.boot"
        self._files = {"/etc/hosts": HOSTS, "/etc/resolv.conf": RESOLVER.format(address=resolver)}
        self._files["/etc/nsswitch.conf"] = SWITCH
        self._held: tuple[float, float] | None = None  # not ahead of this, and until when
        self._mounts: list[tuple[Path, str]] = []
        if may_mount():
            for number, (path, text) in enumerate(self._files.items()):
                file = directory / f"{server}.{number}"
                file.write_text(text)
                self._mounts.append((file, path))
            self._mounts.append((self._boot, SHOWN[-1]))
            self._new_boot()

    @property
    def env(self) -> dict[str, str]:
        """The environment variables of the programs."""
        return self._clock.env

    def program(self, *argv: str) -> tuple[str, ...]:
        """Return the command that runs a program on this machine."""
        if not self._mounts:
            return argv
        mounts = " && ".join(f'mount --bind "${2 * n + 1}" "${2 * n + 2}"' for n in range(len(self._mounts)))
        script = f'{mounts} && shift {2 * len(self._mounts)} && exec "$@"'
        files = [part for file, path in self._mounts for part in (str(file), path)]
        return ("unshare", "-m", "sh", "-c", script, "sh", *files, *argv)

    # --- faults ---

    def jumps(self) -> str:
        """Set the clock forwards or back, or right again; return the text for the story."""
        span_s = self._random.choice(SPANS_S)
        ahead_s = self._random.choice((0.0, self._random.uniform(-span_s, span_s)))
        if self._held is not None and now_s() < self._held[1]:
            ahead_s = min(ahead_s, self._held[0])
        return self._set(ahead_s)

    def _set(self, ahead_s: float) -> str:
        self._clock.set(ahead_s)
        self._happened.clock_set(self.server, ahead_s, now_s())
        return f"clock of {self.server} is {ahead_s / HOUR_S:+.2f} h off"

    def sleeps(self) -> str | None:
        """All of its programs are frozen: often its clock is another when they go on."""
        return f"{self.server} sleeps, {self.jumps()}" if self._random.random() < SLEEPS else None

    def may_boot(self, since_s: Sequence[float | None]) -> bool:
        """Return whether the clock's time at the end would be known: to the programs, which serve since these times
        (None: not yet). If so, hold the clock until `boots`."""
        serve = all(each is not None and each < now_s() - SETTLED_S for each in since_s)
        may = bool(self._mounts) and serve and self._happened.settled(self.server, SETTLED_S, now_s())
        if may:
            self._held = self._clock.ahead_s, inf
        return may

    def boots(self) -> str | None:
        """Begin another run of the machine, often, when all its programs are down: its clock is as before, or goes
        back.

        Never ahead: a clock ahead looks as if the machine had been off for so long, and rightly ends the lives of
        waiting messages.
        """
        ahead_s = self._clock.ahead_s
        self._held = ahead_s, now_s() + HELD_S
        if self._random.random() >= BOOTS:
            return None
        self._new_boot()
        self._happened.booted(now_s())
        if self._random.random() < 0.5:
            ahead_s -= self._random.uniform(0.0, self._random.choice(SPANS_S))
            self._held = ahead_s, now_s() + HELD_S
        return f"machine of {self.server} boots, {self._set(ahead_s)}"

    def _new_boot(self) -> None:
        id_ = uuid.UUID(int=self._random.getrandbits(128))
        self._boot.write_text(f"{id_}\n")  # the same file as is mounted
