"""Errors that end the command with one sentence for the user."""


class Failure(Exception):
    """A missing package or setting, or an operation that failed. The message is a sentence for the user."""


class Refusal(Exception):
    """A request that was refused or failed. The message is a sentence for the user."""
