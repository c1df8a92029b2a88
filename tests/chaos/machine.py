"""The machine of one server in a chaos run: its wall clock, the name of its run, and how it looks up names.

Where the test may mount (root on Linux), each program of the server runs in a mount namespace with an /etc/hosts, an
/etc/resolv.conf and an /etc/nsswitch.conf of the run's, and with a boot id of the machine's own. The namespaces go with
the programs. Elsewhere the machine has a clock alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from functools import cache
from math import inf
from pathlib import Path
from random import Random

from tests.chaos.happened import Happened
from tests.chaos.journal import now_s
from tests.wall_clock import WallClock

HOUR_S = 3600.0
SPANS_S = (HOUR_S, 24 * HOUR_S, 60 * 24 * HOUR_S)
"""How far a clock is off, at most: each as often as the others."""
SETTLED_S = 4.0
"""A machine boots only so long after its clock was set: time that no disk knows of is as if it had been off."""
SLEEPS, BOOTS = 0.6, 0.6
"""How often a whole server that is frozen sleeps, and how often one that was killed comes back after a boot."""
HELD_S = 20.0
"""From a boot until its programs have seen their clock; until then it is not set ahead, for the same reason."""
SHOWN = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/proc/sys/kernel/random/boot_id")
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
SWITCH = "hosts: files dns\n"
RESOLVER = "nameserver {address}\noptions timeout:4 attempts:1\n"
"""A question that is not answered takes 4 s, longer than anybody waits for it."""


@cache
def may_mount() -> bool:
    """Whether the programs may be given files of their own."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return False
    script = " && ".join(f"mount --bind {path} {path}" for path in SHOWN)
    return subprocess.run([unshare, "-m", "sh", "-c", script], capture_output=True, check=False).returncode == 0


class Machine:
    """One server's. `directory` is for its files; `resolver` is the address of the name server that it asks."""

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
        """What the programs have in their environment."""
        return self._clock.env

    def program(self, *argv: str) -> tuple[str, ...]:
        """Return the command that runs a program on this machine."""
        if not self._mounts:
            return argv
        mounts = " && ".join(f'mount --bind "${2 * n + 1}" "${2 * n + 2}"' for n in range(len(self._mounts)))
        script = f'{mounts} && shift {2 * len(self._mounts)} && exec "$@"'
        files = [part for file, path in self._mounts for part in (str(file), path)]
        return ("unshare", "-m", "sh", "-c", script, "sh", *files, *argv)

    # --- what happens to it ---

    def jumps(self) -> str:
        """Its clock is set, forwards or back, or is right again; returns what to tell."""
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

    def may_boot(self) -> bool:
        """Whether it would be known what its clock was at the end. If so, it is not set ahead before `boots`."""
        may = bool(self._mounts) and self._happened.settled(self.server, SETTLED_S, now_s())
        if may:
            self._held = self._clock.ahead_s, inf
        return may

    def boots(self) -> str | None:
        """All of its programs are down: often it begins another run, and its clock is as before, or back by some time.

        Never ahead: that is as if the machine had been off for so long, and costs what waits its life by right.
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
