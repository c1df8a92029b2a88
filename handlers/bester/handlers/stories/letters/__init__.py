"""The letters: T and G, each with a box of gadgets (a server with handlers) that understand a language each.

Every gadget is a module: `english`, `afrikaans`, `portuguese`. `post` is how letters travel, `phrase_book` how they
are translated.
"""
