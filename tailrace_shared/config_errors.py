"""The error that prevents the start of either service."""


class ConfigurationError(Exception):
    """A setting, or a file that a setting names, cannot be used.

    The message is one sentence for the operator: it names the variable or the file, and the remedy.
    """
