"""The check of JSON text, compared with the standard library's parser and with a plain count of brackets."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.broker.wire import json_text
from bester.broker.wire.json_text import (
    DEPTH_LIMIT,
    LONG_BYTES,
    TOO_DEEP,
    UNPAIRED,
    fault,
    has_more_values,
    is_utf8,
    too_deep,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
written = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent).encode(
        "utf-8", "surrogatepass"
    ),
    values,
    st.booleans(),
    st.sampled_from([None, 1]),
)
PIECES = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"0", b"1", b"-", b".", b"e", b"u", b"null", b"true", b"NaN"]
PIECES += [b"\\u00e9", b'"a"', b'\\"', b'{"a":']
PIECES += [b" ", b"\n", b"\t", b"\x00", b"\x0b", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf"]
pieces = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


def python_refuses(text: bytes) -> bool:
    """Parse with the standard library, as strictly as RFC 8259; only lone surrogates pass here and not there."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        json.loads(text.decode(), parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return True
    return False


def has_lone_surrogate(text: bytes) -> bool:
    # As pairs, since a map would keep only the last of equal keys.
    value = json.loads(text.decode(), parse_int=str, parse_float=str, object_pairs_hook=list)
    return not is_utf8(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def naive_nesting(text: str) -> int:
    """Count brackets one by one, outside strings. Backslashes escape quotes and backslashes everywhere, and after a
    bracket that closes nothing the depth is below zero: such text is no JSON."""
    depth = deepest = 0
    within = escaped = False
    for character in text:
        if escaped and character in '"\\':
            escaped = False
            continue
        escaped = character == "\\"
        if character == '"':
            within = not within
        elif character in "[{" and not within:
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}" and not within:
            depth -= 1
    return deepest


@given(written)
def test_output_of_pythons_json_is_json(text: bytes) -> None:
    assert fault(text) is None or has_lone_surrogate(text)


@given(written | pieces)
@settings(max_examples=500)
def test_both_parsers_agree(text: bytes) -> None:
    if python_refuses(text):
        assert fault(text) is not None
    elif fault(text) is not None:
        assert has_lone_surrogate(text) or too_deep(text)


@given(written, st.data())
def test_both_parsers_agree_on_json_with_a_slip(text: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    text = (
        text[:at] + data.draw(st.sampled_from([b"", b",", b"0", b'"', b"]", b"\\", b"\x01", b"\xe9"])) + text[at + 1 :]
    )
    if python_refuses(text):
        assert fault(text) is not None
    else:
        assert fault(text) is None or has_lone_surrogate(text)


@given(st.binary(max_size=60))
def test_garbage_never_raises(text: bytes) -> None:
    assert (fault(text) is None) <= is_utf8(text)


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "-0",
        "1e400",
        "123456789012345678901234567890",
        '{"a":1,"a":2}',
        '"\\u00e9\\/"',
        '"\\ud83d\\ude00"',
        " [ ] ",
        '"\x7f"',
        "9" * 5000,
    ],
)
def test_json_that_parsers_tend_to_change_is_accepted(text: str) -> None:
    assert fault(text.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "NaN",
        "-Infinity",
        "[1,]",
        '{"a":1,}',
        "{1:2}",
        "1 2",
        "[] x",
        '"\t"',
        '"\\x41"',
        "'a'",
        "\ufeff1",
        "tru",
        '"a',
        "[",
        "]",
        "//x\n1",
    ],
)
def test_text_that_only_resembles_json_is_refused(text: str) -> None:
    assert fault(text.encode()) is not None


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\\udc00"', b'"\\ude00\\ud83d"', b'"\\ud800x"'])
def test_lone_surrogates_are_refused_though_python_accepts_them(text: bytes) -> None:
    assert not python_refuses(text)
    assert fault(text) == UNPAIRED
    assert fault(b'{"a":[1e999,' + b"9" * 5000 + b"," + text + b"]}") == UNPAIRED, "no number is a fault"
    assert fault(text + b",") not in (None, UNPAIRED), "it is no JSON besides"


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf5\x80\x80\x80"', b'"\xe4\xb8"'])
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    assert fault(text) == "not UTF-8"


@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"[":', b"}]")])
def test_nesting_is_allowed_up_to_the_limit(left: bytes, right: bytes) -> None:
    each = left.count(b"{") + left.replace(b'"["', b"").count(b"[")
    just = DEPTH_LIMIT // each
    assert fault(left * just + b"1" + right * just) is None
    assert fault(left * (just + 1) + b"1" + right * (just + 1)) == TOO_DEEP
    assert fault(left * 100_000 + b"1" + right * 100_000) == TOO_DEEP
    assert fault(left * 100_000) == TOO_DEEP


@given(written)
def test_nesting_agrees_with_a_plain_count(text: bytes) -> None:
    depth = naive_nesting(text.decode("utf-8", "surrogatepass"))
    assert not too_deep(text, depth)
    assert depth == 0 or too_deep(text, depth - 1)


@given(st.text('[]{}"\\a,é ', max_size=40))
def test_nesting_of_broken_text_agrees_with_a_plain_count(text: str) -> None:
    depth = naive_nesting(text)
    assert not too_deep(text.encode(), depth)
    assert depth == 0 or too_deep(text.encode(), depth - 1)


@pytest.mark.parametrize("string", [b'"["', b'"]]"', b'"\\"["', b'"\\\\"'])
def test_strings_are_told_from_brackets_in_long_text(string: bytes) -> None:
    row = b"[[" + string + b"]]"
    text = b"[" + b",".join([row] * (128 * 1024 // len(string))) + b"]"
    assert not too_deep(text, 3) and too_deep(text, 2)


def count_values(value: Any, list_weight: int) -> int:
    if not isinstance(value, (list, dict)):
        return 1
    inner = value.values() if isinstance(value, dict) else value
    return (1 if value else 2) + list_weight + sum(count_values(each, list_weight) for each in inner)


@given(values, st.integers(0, 8))
def test_values_are_counted_outside_of_strings(value: Any, list_weight: int) -> None:
    """An empty list may count as one with an element."""
    value = [value, '[,{"\\']
    assert not has_more_values(json.dumps(value, indent=1).encode(), count_values(value, list_weight), list_weight)


@pytest.mark.parametrize(
    ("text", "count"),
    [(b"1", 1), (b'",,[{"', 1), (b"[1,2]", 11), (b'{"a":1,"b":[2]}', 20), (rb'["a\",",",[\"",3]', 12)],
)
def test_number_of_values_of_json_text(text: bytes, count: int) -> None:
    assert has_more_values(text, count - 1, 8) and not has_more_values(text, count, 8)


@pytest.mark.parametrize("text", [b"[],", b'"a",', b'{"a":{}},'])
def test_long_text_with_a_lone_surrogate_is_told_from_what_is_no_json(text: bytes) -> None:
    long = b"[" + text * LONG_BYTES
    assert fault(long + b'"\\ud800"]') == fault(long + b'"\\ude00\\ud83d"]') == UNPAIRED
    assert fault(long + b'"\\ud800]') not in (None, UNPAIRED)
    assert fault(long + b'"\\ud8"]') not in (None, UNPAIRED)
    assert fault(long + b'"\\ud83d\\ude00"]') is None


@given(st.integers(0, 5), st.integers(0, 5))
def test_depth_above_the_limit_is_too_deep(depth: int, limit: int) -> None:
    assert too_deep(b"[" * depth + b"]" * depth, limit) == (depth > limit)
    assert not too_deep(b'"' + b"[" * depth + b'"', limit)


@pytest.mark.parametrize("most", [1, 3, DEPTH_LIMIT - 1])
def test_levels_that_hold_little_are_not_taken_off_one_by_one(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level is gone through as a whole: text whose begin is full of pairs at every level held the loop for a
    tenth of a second."""
    taken_off, gone_through = json_text._without_leaves, 0

    def count(brackets: bytes) -> bytes:
        """Count what is gone through."""
        nonlocal gone_through
        gone_through += len(brackets)
        return taken_off(brackets)

    monkeypatch.setattr(json_text, "_without_leaves", count)
    rising = b",".join(b",".join([b"[" * depth + b"]" * depth] * 350) for depth in range(1, most + 1))
    assert fault(b"[" + rising + b"]") is None
    assert gone_through < 4 * len(rising)
    assert too_deep(b"[" + rising + b"]", most)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 65 + b'"' + b'\\"' * 500_000,
        b"[" * 65 + b'\\"' * 500_000,
        b"[" * 65 + b'"' + b"\\\\" * 500_000,
        b"[" * 65 + b'""' * 500_000,
        b"[" * 1_000_000,
        b'"' + b"[" * 1_000_000,
        b'["' + b"x" * 1_000_000 + b'"' + b"]" * 65,
        b"[" + (b"[" * 63 + b"]" * 63 + b",") * 8_000,
        b"[" + b'"[",' * 250_000,
    ],
    ids=[
        "escaped quotes",
        "quotes after backslashes",
        "backslashes",
        "empty strings",
        "brackets",
        "unfinished",
        "long",
        "just as deep as may be",
        "brackets in strings",
    ],
)
def test_time_is_linear_in_the_size(text: bytes) -> None:
    started = time.process_time()
    assert fault(text) is not None
    assert time.process_time() - started < 2  # seconds of CPU time; in quadratic time these take hours
