"""Data that does not fit its type: a path and a sentence in JSON's words."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from bester.handlers import HandlerError, SchemaError
from bester.handlers.payload import typed


class Colour(enum.Enum):
    RED = "red"


class Item(msgspec.Struct, rename={"long_name": "long name"}):
    name: str
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    long_name: str = ""


class Order(msgspec.Struct, forbid_unknown_fields=True):
    to: list[str] = []
    items: list[Item] = []
    colour: Colour = Colour.RED
    size: Literal["s", "m"] = "s"
    price: float = 0
    paid: bool = False
    note: str | None = None
    either: int | str | None = None
    by_name: dict[str, list[int]] = {}
    by_number: dict[int, str] = {}
    code: Annotated[str, msgspec.Meta(pattern="^[A-Z, ]*$", max_length=4)] = ""
    pair: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if self.price == 13:
            raise ValueError("the password is hunter2")
        if self.price == 14:
            raise HandlerError("nothing costs fourteen")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"to":["a",5]}', "data.to[1]: expected a string"),
        ('{"to":null}', "data.to: expected an array"),
        ("[]", "data: expected an object"),
        ("null", "data: expected an object"),
        ('{"items":[{"name":"x"},{}]}', "data.items[1].name: required, but missing"),
        ('{"items":[{"name":"x","count":0}]}', "data.items[0].count: expected an integer >= 1"),
        ('{"items":[{"name":"x","count":1.5}]}', "data.items[0].count: expected an integer"),
        ('{"items":[{"name":"x","long name":7}]}', "data.items[0].long name: expected a string"),
        ('{"colour":"blue"}', "data.colour: 'blue' is not one of the values allowed here"),
        ('{"colour":"x - at `$.y`"}', "data.colour: 'x - at `$.y`' is not one of the values allowed here"),
        ('{"size":3}', "data.size: expected a string"),
        ('{"price":"x"}', "data.price: expected a number"),
        ('{"paid":1}', "data.paid: expected true or false"),
        ('{"note":1}', "data.note: expected a string or null"),
        ('{"either":[]}', "data.either: expected an integer, a string or null"),
        ('{"by_name":{"a":["x"]}}', "data.by_name[...][0]: expected an integer"),
        ('{"by_number":{"x":"y"}}', "data.by_number (a key): expected an integer"),
        ('{"code":"x"}', "data.code: expected a string matching regex '^[A-Z, ]*$'"),
        ('{"code":"ABCDE"}', "data.code: expected a string of length <= 4"),
        ('{"pair":[1]}', "data.pair: expected an array of length 2"),
        ('{"colors":1}', "data.colors: not a known field"),
        ('{"price":13}', "data: not allowed"),
    ],
)
def test_sentences(text: str, sentence: str) -> None:
    with pytest.raises(SchemaError) as caught:
        typed(Order).decode(text.encode())
    assert caught.value.text == sentence


def test_text_of_a_handlers_own_exception_is_left_out() -> None:
    with pytest.raises(SchemaError) as caught:
        typed(Order).decode(b'{"price":13}')
    assert "hunter2" not in str(caught.value)
    assert "hunter2" in str(caught.value.__cause__)


def test_text_of_a_handlers_own_refusal_is_kept() -> None:
    with pytest.raises(HandlerError, match="nothing costs fourteen"):
        typed(Order).decode(b'{"price":14}')


@pytest.mark.parametrize(
    ("declared", "text", "sentence"),
    [
        (int, '"x"', "data: expected an integer"),
        (list[list[bool]], "[[true],[1]]", "data[1][0]: expected true or false"),
        (dict[str, str], '{"a":{}}', "data[...]: expected a string"),
    ],
)
def test_declared_types_other_than_structs(declared: Any, text: str, sentence: str) -> None:
    with pytest.raises(SchemaError) as caught:
        typed(declared).decode(text.encode())
    assert caught.value.text == sentence
