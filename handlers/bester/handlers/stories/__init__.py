"""The two stories that Bester was first explained with, as servers to run: configurations and handlers.

`bester demo` plays them; examples/ says how to run them by hand.
"""
