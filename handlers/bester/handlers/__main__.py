"""`python -m bester.handlers MODULE:APP`."""

import sys

from bester.broker.streams import secure

if __name__ == "__main__":
    secure()  # before anything opens a file or a socket
    from bester.handlers.runner import main

    sys.exit(main())
