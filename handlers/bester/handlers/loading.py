"""Loads the App that `MODULE:APP` names. Each fault becomes one line that says how to mend it."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from types import ModuleType

from bester.broker.wire import arguments
from bester.broker.wire.notes import class_name
from bester.handlers.app import App


class LoadError(Exception):
    """The app cannot be loaded; the text is for people. `status` is the program's exit status: 2 where something must
    be changed first, 1 where a retry may help."""

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(text)
        self.status = status


def load(spec: str) -> App:
    """Import `MODULE:APP`, from the working directory too. Raises LoadError."""
    module_name, colon, attribute = spec.partition(":")
    is_file = "/" in module_name or module_name.endswith(".py")
    if not colon or not attribute or is_file or not all(module_name.split(".")):
        raise LoadError(f"{spec!r} is not MODULE:APP, as in mychat:app (module mychat, which holds app = App())")
    try:
        here = os.getcwd()
    except OSError:
        raise LoadError("the directory this was started in is not there any more; cd to one that is") from None
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    found: object = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise LoadError(f"module {module_name!r} has no {attribute!r}{_suggest(module_name)}")
        found = getattr(found, part)
    if not isinstance(found, App):
        kind = type(found).__name__
        raise LoadError(f"{spec} is a {kind}, not an App of bester.handlers{_suggest(module_name)}")
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise LoadError(f"there is no module {name!r} in {os.getcwd()} or among the installed ones") from None
        text = f"{_where(error)} needs the module {missing!r}, which is not installed: pip install {missing}"
        raise LoadError(text) from None
    except SyntaxError as error:
        raise LoadError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        ends = "ends the program, where a module of handlers is only imported"
        text = f"{_where(error, _is_others)}: {ends}{_exit_of(error)}"
        raise LoadError(text, 1 if error.code else 2) from None
    except BaseException as error:  # noqa: BLE001 (importing runs the user's code)
        if isinstance(error.__cause__, KeyboardInterrupt):  # wrapped, as Python 3.11 does while a class is being made
            raise error.__cause__ from None
        # An interpreter's error is the file's fault; another library's (no database) and the system's may pass.
        own = type(error).__module__ == "builtins" and not isinstance(error, OSError)
        text = f"{_where(error, _is_others)}: {class_name(error)}{_text_of(error)}"
        raise LoadError(text, 2 if own else 1) from None


def _exit_of(error: SystemExit) -> str:
    """Return what an exit says, as `sys.exit` shows it: its text, or its status."""
    code = error.code
    return f" (status {code or 0})" if code is None or isinstance(code, int) else _text_of(error)


def _text_of(error: BaseException) -> str:
    """Return a colon and an exception's text as one line; `str()` runs the user's code, too."""
    try:
        text = " ".join(str(error).split())
        return f": {text}" if text else ""
    except Exception:  # noqa: BLE001 (as above)
        return ": an exception without a text"


def _where(error: BaseException, passed_over: Callable[[str], bool] = lambda filename: False) -> str:
    """Return the line at which an import failed: the last one outside the import machinery, in a file that is not
    `passed_over` where there is one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    frames = [frame for frame in frames if not passed_over(frame.filename)] or frames
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "the module"


def _is_others(filename: str) -> bool:
    """Return whether a file is of Python, or of an installed package: the user can mend others."""
    return filename.startswith(tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib")))


def _is_ours(filename: str) -> bool:
    ours = (os.path.dirname(__file__), os.path.dirname(arguments.__file__))
    return filename.startswith("<") or filename == importlib.__file__ or os.path.dirname(filename) in ours


def _suggest(module_name: str) -> str:
    apps = [name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, App)]
    return f"; did you mean {module_name}:{apps[0]}?" if apps else ""
