"""The environment variables that Tailrace reads, and a check for misspelt ones.

Each service also finds the other service's variables in its environment, and ignores them. This table distinguishes
them from misspelt ones. A service logs a misspelt variable, and does not start if the variable may be meant to protect
it.
"""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tailrace_shared.config_errors import ConfigurationError

PREFIX = "TAILRACE_"
# Fields of the two services' Settings classes. A test compares this table with the classes.
SETTINGS = (
    "ACCOUNT_REQUESTS_PER_MINUTE",
    "ALLOWED_HOSTS",
    "API_TOKENS",
    "API_TOKENS_FILE",
    "BATCHES_KEEP_SECONDS",
    "BATCHES_MAX",
    "BATCHES_MAX_BYTES",
    "BATCHES_MAX_REQUESTS",
    "BATCHES_PARALLEL",
    "BATCHES_TIMEOUT_SECONDS",
    "BATCH_INVARIANT",
    "BINDING_ADDRESS",
    "BODY_TIMEOUT_SECONDS",
    "CACHE_DIR",
    "CATALOG",
    "CORS_ORIGINS",
    "CPU_FEATURES",
    "DETERMINISTIC",
    "DEVICE",
    "GRPC_ADDRESS",
    "GRPC_CONNECTION_AGE_SECONDS",
    "GRPC_HEALTH_ADDRESS",
    "GRPC_TLS_CA",
    "GRPC_TLS_CERT",
    "GRPC_TLS_CLIENT_CA",
    "GRPC_TLS_CLIENT_CERT",
    "GRPC_TLS_CLIENT_KEY",
    "GRPC_TLS_KEY",
    "GRPC_TLS_SERVER_NAME",
    "GRPC_TOKEN",
    "GRPC_TOKENS_FILE",
    "HEADER_TIMEOUT_SECONDS",
    "HTTP_ADDRESS",
    "HTTP_METRICS_ADDRESS",
    "HTTP_SHUTDOWN_GRACE_SECONDS",
    "IDLE_TIMEOUT_SECONDS",
    "INT8_THRESHOLD",
    "KV_CACHE_TOKENS",
    "LOG_FORMAT",
    "LOG_LEVEL",
    "MAX_ACCOUNT_SEQS",
    "MAX_BATCH_SEQS",
    "MAX_BODY_BYTES",
    "MAX_CONNECTIONS",
    "MAX_CONTEXT",
    "MAX_HEADER_BYTES",
    "MAX_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "MAX_RUNNING_SEQS",
    "MAX_SCHEMA_DEPTH",
    "MAX_WAITING_SEQS",
    "MAX_WAITING_TOKENS",
    "METRICS_ADDRESS",
    "MODELS",
    "PRECISION",
    "PREFILL_CHUNK_TOKENS",
    "PREFILL_IDLE_TOKENS",
    "PREFIX_CACHE",
    "PREFIX_CACHE_TOKENS",
    "PROFILE",
    "RAW_CONTROL_TOKENS",
    "RECORDINGS",
    "RECORDINGS_MODE",
    "REQUEST_TIMEOUT_SECONDS",
    "SHUTDOWN_GRACE_SECONDS",
    "STALL_EXIT_SECONDS",
    "STALL_SECONDS",
    "STREAM_COMMENT_SECONDS",
    "STREAM_PADDING",
    "WRITE_TIMEOUT_SECONDS",
)
# Other variables, which the command, the examples, the compose files or the tests read or set.
OTHERS = (
    "URL",
    "TOKEN",
    "ACCOUNT",
    "CHAT_HISTORY",
    "COMMAND",
    "PYTHON_PACKAGE",
    "START_SECONDS",
    "WRANGLER_CONFIG",
    "HTTP_PORT",
    "GRPC_PORT",
    "PROMETHEUS_PORT",
    "GRAFANA_PORT",
    "FAULT_FILE",
    "PARENT_PIPE",
    "PORT_PIPE",
    "TEST_CATALOG",
    "TEST_SERVER",
)
KNOWN = tuple(PREFIX + name for name in (*SETTINGS, *OTHERS))

# Endings of the variables that Kubernetes and Docker links add for a service whose name begins with "tailrace".
_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
_PROTECTS = re.compile(r"TOKEN|TLS|KEY|SECRET|PASSWORD|AUTH|CERT|ALLOWED")
# Settings that count tokens of text, not API tokens.
_COUNTS = re.compile(r"CACHE|PREFI|WAITING|CONTROL")
_MIN_SIMILARITY = 0.6


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """An environment variable that Tailrace does not read.

    Attributes:
        name: The variable; its value is never shown, because it may be a secret.
        nearest: The most similar variable that Tailrace reads, or None.
    """

    name: str
    nearest: str | None

    @property
    def is_protective(self) -> bool:
        """True if the variable was probably meant to protect the services: starting without it would leave them unprotected."""
        return _PROTECTS.search(self.name) is not None and _COUNTS.search(self.name) is None

    def __str__(self) -> str:
        """Describe the variable in one sentence without a final period."""
        hint = f"did you mean {self.nearest}?" if self.nearest else "docs/configuration.md lists the settings"
        return f"{self.name} is not a setting of Tailrace ({hint})"


def unknown_variables(names: Iterable[str]) -> list[UnknownVariable]:
    """Return the variables among `names` that begin with TAILRACE_ and are not read, in alphabetical order.

    Variables that Kubernetes and Docker links add are left out.
    """
    return [
        UnknownVariable(name, _nearest(name))
        for name in sorted(names)
        if name.startswith(PREFIX) and name not in KNOWN and not _LINK.search(name)
    ]


def _nearest(name: str) -> str | None:
    matches = difflib.get_close_matches(name.removeprefix(PREFIX), (*SETTINGS, *OTHERS), n=1, cutoff=_MIN_SIMILARITY)
    return PREFIX + matches[0] if matches else None


def check_variables(logger: logging.Logger, environment: Mapping[str, str] = os.environ) -> None:
    """Log a warning for each variable that `unknown_variables` finds.

    Raises:
        ConfigurationError: One of them was probably meant to protect the service, such as TAILRACE_API_TOKEN.
    """
    unknown = unknown_variables(environment)
    if protective := [variable for variable in unknown if variable.is_protective]:
        sentences = ". ".join(map(str, protective))
        raise ConfigurationError(
            f"{sentences}. Correct or unset it: a variable that may be meant to protect the service is not ignored"
        )
    for variable in unknown:
        logger.warning("%s", variable)
