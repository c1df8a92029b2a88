"""The two stories that first explained Bester, as servers to run: configurations and handlers.

`bester demo` plays them; examples/ shows how to run them by hand.
"""
