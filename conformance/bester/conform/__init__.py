"""Numbered cases that say whether a handler, or a server's native side, speaks its protocol.

The cases are data (TOML files); this package reads them, plays them over real sockets and reports. Nothing here uses
Bester's own code: what a case sees is the wire. `bester.cli.conform` is the command.
"""
