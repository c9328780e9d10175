"""The names of accounts: in paths of the bridge, in the file of API tokens and in options of the command."""

import re

EVERY_ACCOUNT = "*"
# Neither "." nor "..": clients remove them from paths.
_NAME = re.compile(r"(?!\.{1,2}\Z)[\w.-]{1,128}", re.ASCII)


def is_account(text: str) -> bool:
    """Return True if `text` is the name of one account: 1 to 128 letters, digits, dots, dashes and underscores."""
    return _NAME.fullmatch(text) is not None
