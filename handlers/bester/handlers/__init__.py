"""Write message handlers in Python: an App, its handlers, and what they answer.

Needs pyzmq and msgpack; msgspec and uvloop make it faster where they are installed.
"""

from bester.handlers.app import App
from bester.handlers.message import Message
from bester.handlers.payload import HandlerError, SchemaError
from bester.handlers.reply import send_clients, send_handler, send_servers
from bester.handlers.runtime import Outcome

__all__ = [
    "App",
    "HandlerError",
    "Message",
    "Outcome",
    "SchemaError",
    "send_clients",
    "send_handler",
    "send_servers",
]
