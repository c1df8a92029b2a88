"""Property tests: machines are shared, so no single example is judged by its time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared machine", deadline=None, print_blob=True)
settings.load_profile("shared machine")
