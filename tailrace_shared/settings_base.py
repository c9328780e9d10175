"""The base class of both services' settings: environment variables with the prefix TAILRACE_."""

from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, SettingsConfigDict

from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.variables import PREFIX

# Headings of the list of settings in the documentation, in their order.
Group = Literal[
    "network",
    "TLS and tokens",
    "models",
    "scheduling",
    "cache",
    "limits",
    "batches",
    "timeouts",
    "observability",
    "compatibility",
    "testing",
]
_MAX_SHOWN = 100  # longest part of an invalid value in an error message, in characters


def group(name: Group) -> JsonDict:
    """Return a field's `json_schema_extra`: its heading in the list of settings."""
    return {"group": name}


class ServiceSettings(BaseSettings):
    """Settings of one service, read from environment variables: TAILRACE_ plus the field's name in upper case."""

    # Both services read the same environment, so a variable of the other service is not an error here.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    # Fields whose values are never shown.
    secrets: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_environment(cls) -> Self:
        """Return the settings in the environment.

        Raises:
            ConfigurationError: The message has one clause for each invalid variable.
        """
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError("; ".join(cls._clause(problem) for problem in error.errors())) from None

    @classmethod
    def _clause(cls, problem: Any) -> str:
        reason = str(problem["ctx"]["error"]) if "error" in problem.get("ctx", {}) else problem["msg"]
        if not problem["loc"]:  # the check concerns several variables, and its message names them
            return reason
        name = problem["loc"][0]
        given = "" if name in cls.secrets else f"={problem['input']!s:.{_MAX_SHOWN}}"
        return f"{PREFIX}{name.upper()}{given}: {reason[0].lower()}{reason[1:]}"
