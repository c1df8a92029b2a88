"""BFP/1, the fabric protocol: messages, codec, addresses and codes.

Everything that bridges, handlers and other programs may import from the broker
lives in this package; nothing in it opens a socket, reads a clock or logs.
"""
