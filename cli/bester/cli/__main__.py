"""`python -m bester.cli`, where the `bester` program is not on the path."""

import sys

from bester.cli import main

sys.exit(main())
