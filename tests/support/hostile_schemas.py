"""JSON Schemas that cost a compiler much time or memory, by name. Each is a different kind."""

import random
import string

_dice = random.Random(1)


def _word(length: int) -> str:
    return "".join(_dice.choices(string.ascii_letters, k=length))


def _nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {
            "anyOf": [{"type": "object", "properties": {"a": schema, "b": schema}}, {"type": "array", "items": schema}]
        }
    return schema


def _references(depth: int) -> dict:
    """Return a schema whose references, written out, have 2 ** depth parts."""
    parts = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**parts, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


_NODE = {"$ref": "#/$defs/n"}
HOSTILE_SCHEMAS: dict[str, dict] = {
    "deep nesting": _nested(7),
    "a huge enum": {"enum": [_word(20) for _ in range(40_000)]},
    "exponential references": _references(25),
    "catastrophic patterns": {"type": "string", "allOf": [{"pattern": f".*{_word(5)}.*"} for _ in range(30)]},
    "huge counts": {
        "type": "array",
        "minItems": 10**6,
        "items": {"type": "string", "minLength": 10**6, "pattern": "^(([a-z]{1,200}){1,200}){1,200}$"},
    },
    "a mebibyte": {
        "type": "object",
        "properties": {_word(30): {"type": "string", "maxLength": 10} for _ in range(14_000)},
    },
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2_000)}},
    "recursive alternatives": {
        "$defs": {
            "n": {
                "anyOf": [
                    _NODE,
                    _NODE,
                    {"type": "array", "items": _NODE},
                    {"type": "object", "properties": {"n": _NODE}},
                ]
            }
        },
        **_NODE,
    },
    "giant numbers": {"type": "integer", "multipleOf": 1_000_003, "maximum": 10**300},
    "a giant multiple": {"type": "integer", "multipleOf": 1_000_003},
    "a long constant": {"const": "x" * 900_000},
}
