"""Handlers that come with Bester, ready to run: echo, chat, mail, kitchen and presence."""
