"""Standard input and output of a child process."""

from __future__ import annotations

import os
from typing import BinaryIO


class Pipes:
    """Standard input and output of one child, as plain descriptors: a stray grandchild that keeps them open blocks
    nothing."""

    def __init__(self) -> None:
        """Open two pipes. Raise OSError where one cannot be opened; nothing is left open then."""
        self.stdin, self._lifeline = os.pipe()
        try:
            self._output, self.stdout = os.pipe()
        except OSError:
            os.close(self.stdin)
            os.close(self._lifeline)
            raise
        self._open = {self.stdin, self._lifeline, self._output, self.stdout}

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)

    def handed_over(self, lifeline: bool) -> None:
        """Close the child's ends, which the child has by now; without a lifeline its input ends here."""
        for descriptor in (self.stdin, self.stdout) if lifeline else (self.stdin, self.stdout, self._lifeline):
            os.close(descriptor)
            self._open.remove(descriptor)

    def output(self) -> BinaryIO:
        """Return the child's output; the caller closes it."""
        self._open.remove(self._output)
        return os.fdopen(self._output, "rb", 0)
