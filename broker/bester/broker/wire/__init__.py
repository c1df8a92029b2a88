"""BFP/1, the fabric protocol: messages, codec, addresses and codes.

Bridges, handlers and other programs may import only this package of the broker. No module of the package opens a
socket, reads a clock or logs.
"""
