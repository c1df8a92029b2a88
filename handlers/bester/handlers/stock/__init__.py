"""Handlers that come with Bester, ready to run: echo and chat."""
