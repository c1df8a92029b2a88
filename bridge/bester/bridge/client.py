"""The client under its old import path; import `bester.client`."""

from bester.client import *  # noqa: F403 (everything that is public there)
