"""`bester send`, `bester listen` and `bester outcome`: a client for the shell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from bester.cli.options import Seconds, as_text, client_password, config_option, given_json, load
from bester.cli.output import err as print_err
from bester.cli.output import interruptible, out, reader_watched

CA_VARIABLE = "BESTER_CA"
to_option = click.option(
    "--to",
    metavar="HOST:PORT",
    help="Server, as HOST:PORT, tls://HOST:PORT or unix:PATH; by default the one in the configuration.",
)
ca_option = click.option(
    "--ca",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Authorities trusted with TLS, or the server's certificate; by default BESTER_CA, else the system's.",
)
user_option = click.option("--user", required=True, metavar="NAME", callback=as_text, help="User who logs in.")
timeout_option = click.option(
    "--timeout", "timeout_s", type=Seconds(0.01), default=30.0, show_default=True, metavar="SECONDS",
    help="Seconds until a missing answer is an error.",
)  # fmt: skip
json_option = click.option("--json", "json_lines", is_flag=True, help="Print received frames, one a line.")


def _checked(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Return the value of --dedup or --ttl. Raises UsageError for an invalid one."""
    from bester.client.frames import dedup_fault, ttl_fault

    if option.name == "dedup":
        as_text(context, option, value)
    fault = dedup_fault(value) if option.name == "dedup" else ttl_fault(value)
    if fault is not None:
        raise click.UsageError(f"{option.opts[0]}: {fault}")
    return value


@click.command()
@config_option
@to_option
@ca_option
@user_option
@json_option
@click.option("--wait", "wait_s", type=Seconds(0), default=0.2, show_default=True, metavar="SECONDS",
              help="Show messages that arrive so long after the report.")  # fmt: skip
@timeout_option
@click.option(
    "--ttl", "ttl_s", type=float, metavar="SECONDS", callback=_checked, help="Time to keep it for absent recipients."
)
@click.option("--dedup", metavar="KEY", callback=_checked,
              help="Dedup key of your own: a message with a used key is not delivered again.")  # fmt: skip
@click.option("--outcome", is_flag=True, help="Show later outcomes of the queued, until all are known or Ctrl-C.")
@click.argument("type_", metavar="TYPE", callback=as_text)
@click.argument("json_text", metavar="JSON")
def send(
    config_path: Path | None,
    to: str | None,
    ca: Path | None,
    user: str,
    json_lines: bool,
    wait_s: float,
    timeout_s: float,
    ttl_s: float | None,
    dedup: str | None,
    outcome: bool,
    type_: str,
    json_text: str,
) -> int:
    """Send one message and show its report.

    Messages that arrive for the sender meanwhile are shown too; those not shown stay queued. JSON given as - is read
    from standard input.

    The password is read from BESTER_PASSWORD, or asked for.
    """
    from bester.cli import messaging
    from bester.client.frames import Terms

    address = _address(to, config_path)
    text = given_json() if json_text == "-" else json_text
    return _run(
        messaging.send_once(
            address,
            user,
            client_password(user),
            type_,
            text,
            ca=_trusted(ca, address),
            terms=Terms(dedup, ttl_s, outcome),
            wait_s=wait_s,
            timeout_s=timeout_s,
            on_frame=_echo if json_lines else None,
            echo=_echo,
        )
    )


@click.command()
@config_option
@to_option
@ca_option
@user_option
@json_option
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="End after so many messages; a pipe into head may take more."
)
@click.option("--ack/--no-ack", default=True, show_default=True,
              help="Count a message as delivered once its line is written, or once it has left the server.",
)  # fmt: skip
def listen(
    config_path: Path | None, to: str | None, ca: Path | None, user: str, json_lines: bool, count: int | None, ack: bool
) -> int:
    """Show messages for a user as they arrive, until Ctrl-C.

    Queued messages come first. Messages not shown, after --count or Ctrl-C, stay queued and are delivered again.

    The password is read from BESTER_PASSWORD, or asked for.
    """
    from bester.cli import messaging

    address = _address(to, config_path)
    password = client_password(user)
    listening = messaging.listen(
        address, user, password, ca=_trusted(ca, address), json_lines=json_lines, echo=_echo, count=count, ack=ack
    )
    return _run(_while_read(listening))


@click.command()
@config_option
@to_option
@ca_option
@user_option
@click.option("--json", "json_lines", is_flag=True, help="Print the answer as one line of JSON.")
@timeout_option
@click.argument("message", metavar="MESSAGE", callback=as_text)
def outcome(
    config_path: Path | None, to: str | None, ca: Path | None, user: str, json_lines: bool, timeout_s: float,
    message: str,
) -> int:  # fmt: skip
    """Show the outcomes of a message that was queued.

    MESSAGE is the server's own id of the message, from its report; only its sender may ask. Messages queued for the
    sender stay queued.

    The password is read from BESTER_PASSWORD, or asked for.
    """
    from bester.cli import messaging

    address = _address(to, config_path)
    password = client_password(user)
    return _run(
        messaging.show_outcome(
            address,
            user,
            password,
            message,
            ca=_trusted(ca, address),
            json_lines=json_lines,
            timeout_s=timeout_s,
            echo=_echo,
        )
    )


def _address(to: str | None, config_path: Path | None) -> str:
    if to is not None:
        return to
    native = load(config_path).native
    address = native.tcp4 or native.tcp6
    if address is None and native.unix is None and native.tls is not None and native.tls.listen:
        raise click.UsageError(
            "the configured listener speaks TLS; name it by --to tls://NAME:PORT as its certificate does"
        )
    if address is None and native.unix is None:
        raise click.UsageError("the configured server has no listener for this command; give it [native] tcp4 or unix")
    return str(address) if address else f"unix:{native.unix}"


def _trusted(ca: Path | None, address: str) -> Path | None:
    """Return the file of trusted authorities: the option's, or for an address with TLS that of the environment."""
    named = os.environ.get(CA_VARIABLE) if address.startswith("tls://") else None
    return ca or (Path(named) if named else None)


def _echo(message: str, /, *, err: bool = False) -> None:
    if err:
        print_err(f"bester: {message}")
    else:
        with interruptible():
            out(message)


async def _while_read(work: Coroutine[None, None, int]) -> int:
    with reader_watched():
        return await work


def _run(work: Coroutine[None, None, int]) -> int:
    return asyncio.run(work)
