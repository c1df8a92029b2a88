"""The letters: T and G, each with a box of gadgets (a server with handlers), one gadget for each language.

Every gadget is a module: `english`, `afrikaans`, `portuguese`. `post` sends letters on, `phrase_book` translates them.
"""
