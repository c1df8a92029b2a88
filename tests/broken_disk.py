"""A disk whose wait fails: fsync and fdatasync of files in one directory say EIO while a switch is on, and with `reads`
pread behind the first 4 KiB of a file.

The kernel itself takes all writes, so that a process that is killed loses none.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("gcc")
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_broken(int fd) {
    const char *on = getenv("BROKEN_DISK_SWITCH"), *below = getenv("BROKEN_DISK");
    char link[64], path[PATH_MAX];
    if (!on || !below || access(on, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, below, strlen(below)) == 0;
}

static int wait_for_disk(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (is_broken(fd)) { errno = EIO; return -1; }
    errno = 0;
    return real(fd);
}

static ssize_t read_at(const char *name, int fd, void *to, size_t size, off64_t at) {
    ssize_t (*real)(int, void *, size_t, off64_t) = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, name);
    if (at >= 4096 && getenv("BROKEN_DISK_READS") && is_broken(fd)) { errno = EIO; return -1; }
    return real(fd, to, size, at);
}

ssize_t pread64(int fd, void *to, size_t size, off64_t at) { return read_at("pread64", fd, to, size, at); }
ssize_t pread(int fd, void *to, size_t size, off_t at) { return read_at("pread64", fd, to, size, at); }
int fsync(int fd) { return wait_for_disk("fsync", fd); }
int fdatasync(int fd) { return wait_for_disk("fdatasync", fd); }
"""


class BrokenDisk:
    """The disk of `directory`, for processes that are started with `env`; `folder` is for files of this object."""

    def __init__(self, folder: Path, directory: Path, *, reads: bool = False) -> None:
        assert COMPILER is not None
        source, library = folder / "broken_disk.c", folder / "broken_disk.so"
        source.write_text(_SOURCE)
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._switch = folder / "broken_disk.on"
        self.env = {
            "LD_PRELOAD": str(library),
            "BROKEN_DISK": str(directory.resolve()),
            "BROKEN_DISK_SWITCH": str(self._switch),
        }
        if reads:
            self.env["BROKEN_DISK_READS"] = "1"

    def breaks(self) -> None:
        """Let each wait for the disk fail from here on."""
        self._switch.touch()

    def heals(self) -> None:
        """Let the waits succeed again."""
        self._switch.unlink(missing_ok=True)
