"""`python -m bester.handlers MODULE:APP`."""

import sys

from bester.broker.streams import secure

INTERRUPTED = 130
"""Exit status of a program ended by Ctrl-C, as shells show it."""

if __name__ == "__main__":
    secure()  # before anything opens a file or a socket
    try:
        from bester.handlers.runner import main

        sys.exit(main())
    except KeyboardInterrupt:  # before the handler serves: from then on Ctrl-C lets it finish
        sys.exit(INTERRUPTED)
