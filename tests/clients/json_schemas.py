"""Fifty JSON Schemas of growing difficulty, with bounded strings and arrays."""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "maxLength": 12}
NUMBER: Schema = {"type": "integer", "minimum": -1000, "maximum": 1000}


def record(properties: Schema, *, optional: tuple[str, ...] = (), **rest: Any) -> Schema:
    """Return the schema of an object with exactly these properties."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **rest}


def array(items: Schema, low: int = 0, high: int = 3) -> Schema:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


def nested(depth: int) -> Schema:
    return record({"value": NUMBER, "inner": nested(depth - 1)}) if depth else record({"value": NUMBER})


_SCALARS: list[Schema] = [
    {"type": "boolean"},
    {"type": "null"},
    {"const": "fixed"},
    {"const": {"a": [1, 2]}},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, 2.5, None, "x", True]},
    NUMBER,
    {"type": "integer", "minimum": 0, "maximum": 9, "multipleOf": 3},
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
    TEXT,
    {"type": "string", "minLength": 5, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
]
_FLAT: list[Schema] = [
    record({"name": TEXT}),
    record({"name": TEXT, "age": NUMBER}),
    record({"name": TEXT, "note": TEXT}, optional=("note",)),
    record({"a": TEXT, "b": NUMBER, "c": {"type": "boolean"}}, optional=("a", "b", "c")),
    record({"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}}),
    record({"ünï cödé": NUMBER, 'quo"te': {"type": "boolean"}, "": {"type": "null"}}),
    record({f"field_{number}": {"type": "boolean"} for number in range(20)}),
    record(
        {
            "when": {"type": "string", "format": "date-time"},
            "who": {"type": "string", "format": "email", "maxLength": 40},
        }
    ),
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 0},
    array({"type": "boolean"}, 2, 2),
    array(NUMBER, 1, 4),
    array(TEXT),
    array({"enum": ["a", "b"]}, 3, 5),
    {"type": "array", "prefixItems": [NUMBER, TEXT], "items": False, "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [{"const": "head"}], "items": NUMBER, "minItems": 1, "maxItems": 3},
]
_DEEP: list[Schema] = [
    array(record({"id": NUMBER, "tag": TEXT}), 1, 3),
    record({"tags": array(TEXT), "scores": array(NUMBER)}),
    record({"person": record({"name": TEXT, "address": record({"city": TEXT, "zip": NUMBER})})}),
    array(array(array({"type": "boolean"}, 1, 2), 1, 2), 1, 2),
    nested(4),
    nested(8),
    record({"matrix": array(array(NUMBER, 2, 2), 2, 2)}),
    {"anyOf": [{"type": "boolean"}, TEXT]},
    record({"value": {"anyOf": [NUMBER, {"type": "null"}, record({"unit": TEXT})]}}),
    {"anyOf": [record({"cat": {"const": 1}}), record({"dog": {"const": 2}})]},
]
_REFERRING: list[Schema] = [
    {"$defs": {"n": NUMBER}, **record({"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}})},
    {"$defs": {"point": record({"x": NUMBER, "y": NUMBER})}, **array({"$ref": "#/$defs/point"}, 2, 2)},
    {
        "allOf": [{"type": "object", "properties": {"a": NUMBER}, "required": ["a"]}],
        "additionalProperties": False,
        "properties": {"a": True},
    },
    record({"x": {"allOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 20}]}}),
    record({"city": {"enum": ["Kyoto", "Oslo"]}, "days": array(record({"high": NUMBER, "low": NUMBER}), 1, 3)}),
    record({"steps": array(record({"say": TEXT, "done": {"type": "boolean"}}), 2, 3), "answer": TEXT}),
    record(
        {
            "tool": {"enum": ["search", "answer"]},
            "arguments": {"anyOf": [record({"query": TEXT}), record({"text": TEXT})]},
        }
    ),
    record(
        {
            "menu": array(
                record({"dish": TEXT, "price": {"type": "number", "minimum": 0, "maximum": 100, "multipleOf": 0.5}}),
                1,
                3,
            )
        }
    ),
    record({"left": nested(3), "right": nested(3), "both": array(nested(1), 1, 2)}),
    record(
        {
            "title": TEXT,
            "pages": array(record({"lines": array(TEXT, 1, 2), "number": NUMBER}), 1, 2),
            "end": {"const": None},
        }
    ),
]
SCHEMAS = [*_SCALARS, *_FLAT, *_DEEP, *_REFERRING]
# Replies to these may be cut by max_tokens. Complete ones fit the schema.
UNBOUNDED: list[Schema] = [
    {"type": "string"},
    {"type": "array", "items": {"type": "string"}},
    {"type": "object"},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"$defs": {"tree": {"type": "object", "properties": {"child": {"$ref": "#/$defs/tree"}}}}, "$ref": "#/$defs/tree"},
]
