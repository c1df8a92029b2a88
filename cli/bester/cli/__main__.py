"""`python -m bester.cli`, for a shell without `bester` on its path."""

import sys

from bester.cli import main

sys.exit(main())
