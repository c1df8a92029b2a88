"""`bester check`, the doctor: files, ports, keys, machine, other servers, and the status of a server that runs.

Facts are gathered here, by a thin shell; the findings are those of `bester.broker.doctor`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bester.broker.streams import plain
from bester.cli.options import config_option
from bester.cli.output import err, out

if TYPE_CHECKING:
    from bester.broker.doctor.findings import Finding


@click.command()
@config_option
@click.option("--json", "json_lines", is_flag=True, help="Print objects, one a line.")
def check(config_path: Path | None, json_lines: bool) -> int:
    """Look for whatever is wrong, with the server running or not; print each finding with its remedy.

    Exit status 1 where there is an error.
    """
    findings = examine(config_path)
    width = max(len(each.check) for each in findings)
    for each in findings:
        if json_lines:
            out(json.dumps(each.as_map()))
        else:
            remedy = f"; {plain(each.remedy)}" if each.remedy else ""
            out(f"{each.level:<8} {each.check:<{width}}  {plain(each.text)}{remedy}")
    counts = Counter(each.level for each in findings)
    if not json_lines and counts["ok"] < len(findings):
        err(f"bester: errors: {counts['error']}, warnings: {counts['warning']}")
    return int(counts["error"] > 0)


def examine(config_path: Path | None) -> list[Finding]:
    """Return all findings on a server: on its files and machine, and on its status where it runs."""
    from bester.broker.config_file import load
    from bester.broker.doctor import live, local
    from bester.broker.doctor.findings import merged
    from bester.broker.wire.codes import ConfigError
    from bester.cli.doctor.gather import gather

    name = str(config_path or "bester.toml")
    try:
        config = load(config_path)
    except ConfigError as error:
        return local.findings_of(local.Local(name, fault=error.text))
    status, trouble = _status(config)
    facts = gather(config, status, trouble)
    found = local.findings_of(facts)
    return found if status is None else merged(found, live.findings_of(status))


def _status(config: Any) -> tuple[dict[str, Any] | None, str | None]:
    """Return the status of a running server, None where none runs; and why one that runs does not answer."""
    from bester.broker.wire.codes import BesterError
    from bester.cli.doctor.gather import owner_of
    from bester.cli.operate import ask, endpoint_of, is_elsewhere

    if is_elsewhere(config):  # a part's own machine is looked at; what its key may ask is another matter
        return None, None
    try:
        answer = ask(config, "status")
    except BesterError as error:
        owner = owner_of(config.server.data_dir)
        if error.code != "unreachable":
            return None, error.text
        if owner is not None:
            where = config.server.data_dir
            return None, f"process {owner} serves from {where} and does not answer; see its log, or end that process"
        return None, None
    except OSError as error:  # socket whose directory is none, or whose host is out of reach
        endpoint = endpoint_of(config)
        away = f"{endpoint}: {error.strerror or error}; see that the address is right, and the broker runs there"
        return None, None if endpoint.startswith("ipc://") else away
    if answer.status != 0 or not isinstance(answer.value, dict):
        return None, f"{config.server.name} does not know the question; run the same version of bester as the server"
    return answer.value, None
