"""`python -m bester.handlers MODULE:APP`."""

import sys

from bester.handlers.runner import main

if __name__ == "__main__":
    sys.exit(main())
