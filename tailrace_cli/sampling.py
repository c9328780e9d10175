"""The sampling parameters as options of a command line and of /set in a chat."""

import argparse
from collections.abc import Callable

from tailrace_shared.request_fields import SAMPLING_FIELDS, SamplingField

_BY_NAME = {field.name: field for field in SAMPLING_FIELDS}


def parse_value(name: str, text: str) -> float:
    """Return the value of a parameter. `name`: its name in a body, such as top_p.

    Raises:
        ValueError: `text` is not a number in the parameter's range; the message is a clause for the user.
    """
    field = _BY_NAME[name]
    try:
        value: float = int(text) if field.kind == "integer" else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {'an integer' if field.kind == 'integer' else 'a number'}") from None
    if not (value in field.rest and value in field.grpc):
        raise ValueError(f"must be {field.rest}")
    return value


def add_options(group: "argparse._ArgumentGroup") -> None:
    """Add an option for each parameter. Its destination is the parameter's name."""
    for field in SAMPLING_FIELDS:
        sign = "N" if field.kind == "integer" else "X"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_parser(field),
            metavar=sign,
            help=f"{field.rest}. {field.meaning}",
        )


def chosen(options: argparse.Namespace) -> dict[str, float]:
    """Return the parameters that the command line sets."""
    values = {name: getattr(options, name, None) for name in _BY_NAME}
    return {name: value for name, value in values.items() if value is not None}


def _parser(field: SamplingField) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return parse_value(field.name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
