"""Message handlers in Python: an App, its handlers, and the commands that they return.

pyzmq and msgpack are required; msgspec and uvloop are used where they are installed.
"""

from bester.handlers.app import App
from bester.handlers.message import Message
from bester.handlers.middleware import Middleware
from bester.handlers.payload import HandlerError, SchemaError
from bester.handlers.reply import send_clients, send_handler, send_servers
from bester.handlers.runtime import Outcome

__all__ = [
    "App",
    "HandlerError",
    "Message",
    "Middleware",
    "Outcome",
    "SchemaError",
    "send_clients",
    "send_handler",
    "send_servers",
]
