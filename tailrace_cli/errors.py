"""Errors that end the command with one sentence for the user. A chat reports most of them and continues."""


class Failure(Exception):
    """A missing package or setting, or an operation that failed. The message is a sentence for the user."""


class UnknownName(Failure):
    """No served model has the name that the user gave."""


class OutputFailure(Failure):
    """Standard output cannot be written."""


class Refusal(Exception):
    """A request that was refused or failed. The message is a sentence for the user."""


class TooLong(Refusal):
    """The prompt, or the prompt with its reply, exceeds the model's window."""
