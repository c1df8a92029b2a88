"""The client at its old place; import `bester.client`."""

from bester.client import *  # noqa: F403 (everything that is public there)
