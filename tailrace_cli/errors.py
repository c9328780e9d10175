"""Errors that end the command with one sentence for the user."""


class Failure(Exception):
    """A missing part, or an operation that does not work. The message is a sentence for the user."""


class Refusal(Exception):
    """A request that was refused or failed. The message is a sentence for the user."""
