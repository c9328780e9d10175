"""Reads calls that a model writes as a Python list: [name(x=1), other(y="z")]."""

import ast
import json
from collections.abc import Iterable
from typing import Any

_CONSTANTS = {"true": True, "false": False, "null": None}
_BEGIN, _END = "<|python_start|>", "<|python_end|>"


def read(body: str, names: Iterable[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """Return names and arguments of the calls, or None if `body` is anything else. Nothing is executed.

    `names`: The tools' names, which need not be Python identifiers.
    """
    body = body.strip().removeprefix(_BEGIN).removesuffix(_END).strip()
    replaced = {f"tool_{index}_": name for index, name in enumerate(names) if not name.isidentifier()}
    for identifier, name in replaced.items():
        body = body.replace(f"{name}(", f"{identifier}(")
    try:
        tree = ast.parse(body, mode="eval").body
        items = tree.elts if isinstance(tree, ast.List) else [tree]
        found = [(replaced.get(name, name), given) for name, given in (_call(item, body) for item in items)]
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return found or None


def _call(node: ast.expr, source: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("not a call with named arguments")
    name = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
    return name, {keyword.arg or "": _value(keyword.value, source) for keyword in node.keywords}


def _value(node: ast.expr, source: str) -> Any:
    """Return the value of a literal. JSON's words and its escapes within strings are accepted too."""
    match node:
        case ast.Name(id=word) if word in _CONSTANTS:
            return _CONSTANTS[word]
        case ast.List():
            return [_value(item, source) for item in node.elts]
        case ast.Dict():
            keys = [_value(key, source) for key in node.keys if key is not None]
            return dict(zip(keys, (_value(item, source) for item in node.values), strict=True))
        case ast.Constant(value=str() as text):
            try:
                given = json.loads(ast.get_source_segment(source, node) or "")
            except ValueError:
                return text
            return given if isinstance(given, str) else text
    return ast.literal_eval(node)
