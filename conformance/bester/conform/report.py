"""Format results: a line for each case, JSON lines, and a JUnit file for continuous integration. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from bester.conform.result import Result

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def lines(result: Result) -> list[str]:
    """Return the lines for a reader: a line for each case, followed by the details of a failure."""
    case = result.case
    first = f"{result.state:4} {case.number:4}  {case.title}"
    if result.state == "pass":
        return [first]
    if result.state == "skip":
        return [f"{first} ({result.detail})"]
    mild = "" if case.required else " (recommended)"
    below = [
        f"             {result.detail}",
        f"             must be seen: {case.seen}",
        f"             why: {case.why}",
    ]
    return [first + mild, *below, *(f"             | {line}" for line in result.output)]


def as_json(result: Result) -> str:
    """Return a case as one line of JSON."""
    case = result.case
    known = {
        "number": case.number, "title": case.title, "severity": case.severity, "result": result.state,
        "seconds": round(result.seconds, 3), "detail": result.detail, "rule": case.rule, "output": result.output,
    }  # fmt: skip
    return json.dumps(known, ensure_ascii=False)


def summary(results: Sequence[Result]) -> str:
    """Return the line that closes a run."""
    passed, failed, skipped = (sum(r.state == state for r in results) for state in ("pass", "fail", "skip"))
    mild = sum(r.state == "fail" and not r.case.required for r in results)
    text = f"{passed} passed, {failed} failed"
    text += f" ({mild} of them recommended only)" if mild else ""
    return text + (f", {skipped} skipped" if skipped else "")


def junit(results: Sequence[Result], name: str) -> bytes:
    """Return a JUnit file: recommended cases that failed are skipped there, with the reason."""
    failures = sum(result.breaks for result in results)
    skipped = sum(r.state == "skip" or (r.state == "fail" and not r.breaks) for r in results)
    suite = ET.Element(
        "testsuite", name=name, tests=str(len(results)), failures=str(failures), skipped=str(skipped), errors="0",
        time=f"{sum(result.seconds for result in results):.3f}",
    )  # fmt: skip
    for result in results:
        title = f"{result.case.number} {result.case.title}"
        element = ET.SubElement(suite, "testcase", classname=name, name=title, time=f"{result.seconds:.3f}")
        if result.state == "pass":
            continue
        kind = "failure" if result.breaks else "skipped"
        below = ET.SubElement(element, kind, message=_NOT_XML.sub("\ufffd", result.detail))
        below.text = _NOT_XML.sub("\ufffd", "\n".join([f"rule: {result.case.rule}", *result.output]))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written
