"""References in contracts lead to their places in the AsyncAPI document, whose tools know no other base."""

from __future__ import annotations

from typing import Any

import pytest

from bester.cli.asyncapi import document

PLACE = "#/components/messages/a_b/payload/schema"
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "$ref": {"type": "string"},
                "const": {"$ref": "#/$defs/Node"},
                "mark": {"const": {"$ref": "#/$defs/Node"}},
                "kids": {"type": "array", "prefixItems": [{"$ref": "#/$defs/Node"}, {"$ref": "#"}, True]},
            },
        }
    },
}


def schema_of(*contracts: Any) -> Any:
    """Return the schema of a type with these contracts in a document."""
    made = document("s1", [{"type": "a b", "contracts": contracts}])
    return made["components"]["messages"]["a_b"]["payload"]["schema"]


def followed(schema: Any, ref: str, place: str) -> Any:
    """Return what a reference leads to in a schema at its place."""
    assert ref.startswith(place)
    for step in filter(None, ref.removeprefix(place).split("/")):
        schema = schema[step]
    return schema


def test_references_lead_to_the_document() -> None:
    schema = schema_of(TREE)
    node = followed(schema, schema["$ref"], PLACE)
    properties = node["properties"]
    assert properties["$ref"] == {"type": "string"}
    assert followed(schema, properties["const"]["$ref"], PLACE) is node
    assert properties["mark"] == TREE["$defs"]["Node"]["properties"]["mark"]  # type: ignore[index]  # data, not a schema
    kid, whole, anything = properties["kids"]["prefixItems"]
    assert followed(schema, kid["$ref"], PLACE) is node and followed(schema, whole["$ref"], PLACE) is schema
    assert anything is True


def test_contracts_that_differ_have_a_place_each() -> None:
    first, second = schema_of({"type": "null"}, TREE)["anyOf"]
    assert first == {"type": "null"}
    assert second["$ref"] == f"{PLACE}/anyOf/1/$defs/Node"


@pytest.mark.parametrize("contract", [True, {"$id": "urn:x", "$ref": "#/$defs/a", "$defs": {"a": {}}}, {}])
def test_a_contract_without_references_of_its_own_is_unchanged(contract: Any) -> None:
    assert schema_of(contract) == contract


def test_a_type_without_a_contract_has_no_payload() -> None:
    assert "payload" not in document("s1", [{"type": "a b", "contracts": []}])["components"]["messages"]["a_b"]
