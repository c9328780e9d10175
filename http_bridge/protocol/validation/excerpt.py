"""Cuts a large body down, to limit the search for invalid fields. A body can have a million of them."""

from collections.abc import Iterator, Mapping, Set


def field_names(schema: object) -> Iterator[str]:
    """Yield the names of all fields in a JSON Schema, and of its keywords."""
    if isinstance(schema, Mapping):
        for name, inner in schema.items():
            yield name
            yield from field_names(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            yield from field_names(inner)


def beginning(value: object, names: Set[str], room: Iterator[int]) -> object:
    """Return a copy with fewer items and keys.

    Each key that is not in `names`, and each item, consumes an element of `room`. When `room` is exhausted, further
    keys and items are left out.

    Args:
        value: A parsed document, or a part of it.
        names: Keys that are always kept, because a schema may require them. The first item of an array is kept for that
            reason too.
        room: An iterator with one element for each item or key that may be kept.
    """
    if isinstance(value, dict):
        kept = (name for name in value if name in names or next(room, None) is not None)
        return {name: beginning(value[name], names, room) for name in kept}
    if isinstance(value, list):
        items = [beginning(item, names, room) for item, _ in zip(value, room, strict=False)]
        return items or [beginning(item, names, room) for item in value[:1]]
    return value
