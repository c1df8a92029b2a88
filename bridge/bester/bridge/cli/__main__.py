"""`python -m bester.bridge.cli`, where the `bester` program is not on the path."""

import sys

from bester.bridge.cli import main

sys.exit(main())
