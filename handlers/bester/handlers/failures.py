"""Log lines about handlers that fail over a message, or refuse one.

The text of an exception may quote the message: it goes to this log, never to the sender; of a login, which has a
password, not even here.
"""

from __future__ import annotations

import logging
import traceback

from bester.broker.logs import facts
from bester.broker.wire.messages import REFUSED
from bester.broker.wire.notes import class_name, describe
from bester.broker.wire.type_names import AUTH_TYPE
from bester.handlers.turns import Job

log = logging.getLogger("bester.handlers")


def log_failure(job: Job, error: BaseException | None, status: int, note: str | None) -> None:
    """Log the failure of a handler over a request, or its refusal. `note` is the text of an exception that the handler
    may raise; any other is logged with its traceback. Raises where the exception cannot be shown."""
    request, route = job[0], job[1]
    id_, name = request.meta.get("id"), route.name
    if request.type == AUTH_TYPE:  # a text may quote the password
        if status != REFUSED:
            fields = facts("handler-failed", type=request.type, function=name, id=id_)
            log.error("%s: %s failed on login %s: %s", request.type, name, id_, _origin(error), extra=fields)
        return
    fields = facts("handler-failed", type=request.type, function=name, id=id_)
    if status == REFUSED and error is not None:
        cause = f" ({describe(error.__cause__)})" if error.__cause__ is not None else ""
        fields = facts("message-refused", type=request.type, id=id_, why=note)
        log.info("%s: message %s refused: %s%s", request.type, id_, note, cause, extra=fields)
    elif note is not None:
        log.error("%s: %s failed on message %s: %s", request.type, name, id_, note, extra=fields)
    else:
        log.error("%s: %s failed on message %s", request.type, name, id_, exc_info=error, extra=fields)


def _origin(error: BaseException | None) -> str:
    """Return the class of an exception and the line that raised it, without its text."""
    if error is None:
        return "with an exception that cannot be shown"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{class_name(error)}{where}"
