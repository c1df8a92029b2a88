"""Numbered cases that say whether a handler, or a server's native side, speaks its protocol.

The cases are data (TOML files); this package reads them, plays them over real sockets and reports. Nothing here uses
Bester's own codecs: what a case sees is the wire. Only the command (`command`) shares the command line's manners.
"""
