"""The JSON Schema of every body, from the types of the contracts and the texts that stand under their fields."""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from contracts.base import Command, ErrorBody, Event, Meta, answer_adapter
from contracts.heartbeat import Heartbeat
from contracts.topology import MAX_CHANGES_PER_EVENT
from service.received import KindOfRequest

Schema = dict[str, Any]


def schemas_of(requests: Sequence[KindOfRequest], events: Sequence[type[Event[Any]]]) -> dict[str, Schema]:
    """Requests, their replies and events, and what these consist of, by name.

    A request is described as it may be sent, everything else as it comes.
    """
    answers, definitions = TypeAdapter.json_schemas(
        [
            *((request, "validation", TypeAdapter(request)) for request in requests),
            *((reply_name(request), "serialization", answer_adapter(request)) for request in requests),
            *((event, "serialization", TypeAdapter(event)) for event in events),
            (Heartbeat, "serialization", TypeAdapter(Heartbeat)),
            (Meta, "serialization", TypeAdapter(Meta)),
            (ErrorBody, "serialization", TypeAdapter(ErrorBody)),
        ],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Documented,
    )
    schemas: dict[str, Schema] = definitions["$defs"]
    for event in events:
        _say_more_of(event, schemas)
    for request in requests:
        answer = answers[reply_name(request), "serialization"]
        schemas[f"{request.__name__}Reply"] = {"oneOf": [_done(request, answer), _reference("Refused")]}
    schemas["Refused"] = {
        "description": "The request was not carried out, and why.",
        **_object(ok={"const": False}, error=_reference("ErrorBody"), meta=_reference("Meta")),
        "required": ["ok", "error"],
    }
    return schemas


def reply_name(request: KindOfRequest) -> str:
    return f"{request.wire_name}.reply"


def one_line(text: str) -> str:
    return " ".join(text.split())


def _done(request: KindOfRequest, answer: Schema) -> Schema:
    # A repeated command is answered as the first time, which is without data if no answer was asked for then.
    always = ["ok", "meta"] if issubclass(request, Command) else ["ok", "data", "meta"]
    return {**_object(ok={"const": True}, data=answer, meta=_reference("Meta")), "required": always}


def _say_more_of(event: type[Event[Any]], schemas: dict[str, Schema]) -> None:
    """What the types of an event cannot say: its name, how many changes it carries, and what a row's key is."""
    properties = schemas[event.__name__]["properties"]
    properties["type"]["const"] = event.wire_name
    properties["changes"] |= {"minItems": 1, "maxItems": MAX_CHANGES_PER_EVENT}
    change = schemas[properties["changes"]["items"]["$ref"].rpartition("/")[2]]
    columns = schemas[event.view_type().__name__]["properties"]
    key = _object(**{name: columns[name] for name in event.key_fields})
    change["properties"]["key"] |= {**key, "required": list(event.key_fields), "additionalProperties": False}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


class _Documented(GenerateJsonSchema):
    """Pydantic's JSON Schema with the texts of the contracts, and without titles that only repeat a field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the parent's signature
        return False

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        described = super().generate_inner(schema)
        inner = schema.get("schema", {})
        return _decimal(described, inner) if inner.get("type") == "decimal" else described

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        # A parametrized type, such as Change[TradeView], has left its texts behind.
        model: type = schema["cls"].__pydantic_generic_metadata__["origin"] or schema["cls"]
        if model.__doc__:
            described["description"] = one_line(model.__doc__)
        texts = attribute_texts(model)
        fields = described.get("properties", {})
        described["properties"] = {name: _field(field, texts.get(name)) for name, field in fields.items()}
        return described

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        texts = {schema["cls"][name].value: text for name, text in attribute_texts(schema["cls"]).items()}
        return {**super().enum_schema(schema), "x-enumDescriptions": texts}


def _field(field: Schema, text: str | None) -> Schema:
    descriptions = [part for part in (text, field.get("description")) if part]
    described = {**field, "description": " ".join(descriptions)} if descriptions else field
    if "$ref" in described and len(described) > 1:
        # AsyncAPI's dialect, JSON Schema draft 7, reads nothing beside a reference.
        return {"allOf": [{"$ref": described["$ref"]}], **{k: v for k, v in described.items() if k != "$ref"}}
    return described


def _decimal(described: Schema, limits: Any) -> Schema:
    """A decimal by its format, whose meaning the document says once, and whether it may be negative or zero."""
    decimal = {name: part for name, part in described.items() if name != "description"} | {"format": "decimal"}
    if "gt" in limits:
        return decimal | {"exclusiveMinimum": 0, "pattern": "^[0.]*[1-9][0-9.]*$"}
    if "ge" in limits:
        return decimal | {"minimum": 0, "pattern": "^[0-9.]*$"}
    return decimal


@cache
def attribute_texts(cls: type) -> dict[str, str]:
    """The texts that stand under the attributes of a class and its bases, by name; Python itself drops them."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] == "contracts":
            with suppress(OSError):  # installed without its source: the document is complete, but says less
                texts |= _texts_in(inspect.getsource(base))
    return texts


def _texts_in(source: str) -> dict[str, str]:
    texts = {}
    [statement] = ast.parse(textwrap.dedent(source)).body
    for attribute, text in pairwise(getattr(statement, "body", [])):
        match attribute, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(said))),
            ):
                texts[name] = one_line(said)
    return texts
