"""Makes the tables of docs/configuration.md from both services' Settings classes, one table for each group."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from http_bridge.settings import bridge
from inference_server.settings import server
from tests.support.processes import ROOT

_SERVICES: dict[str, Any] = {"server": server.Settings, "bridge": bridge.Settings}
# Title of each group, in the order of the page.
GROUPS = {
    "network": "Network",
    "TLS and tokens": "TLS and tokens",
    "models": "Models",
    "scheduling": "Scheduling",
    "cache": "Cache",
    "limits": "Limits",
    "batches": "Batches",
    "timeouts": "Timeouts",
    "observability": "Observability",
    "compatibility": "Compatibility",
    "testing": "Tests",
}
# Groups of fields that have none in their json_schema_extra.
_FALLBACK = {
    "network": "grpc_address grpc_health_address grpc_connection_age_seconds http_address allowed_hosts cors_origins "
    "binding_address",
    "TLS and tokens": "grpc_tls_cert grpc_tls_key grpc_tls_client_ca grpc_tokens_file grpc_tls_ca grpc_tls_client_cert "
    "grpc_tls_client_key grpc_tls_server_name grpc_token api_tokens api_tokens_file",
    "models": "catalog device int8_threshold batch_invariant raw_control_tokens",
    "scheduling": "max_running_seqs max_waiting_seqs max_waiting_tokens max_account_seqs account_requests_per_minute "
    "prefill_chunk_tokens prefill_idle_tokens",
    "cache": "cache_dir kv_cache_tokens prefix_cache prefix_cache_tokens",
    "limits": "max_message_bytes max_messages max_schema_depth max_body_bytes max_connections max_header_bytes",
    "timeouts": "shutdown_grace_seconds write_timeout_seconds stall_seconds stall_exit_seconds header_timeout_seconds "
    "body_timeout_seconds idle_timeout_seconds request_timeout_seconds http_shutdown_grace_seconds",
    "observability": "metrics_address http_metrics_address log_level log_format",
    "compatibility": "profile stream_padding",
}
_GROUP_OF = {name: group for group, names in _FALLBACK.items() for name in names.split()}


@dataclass
class Variable:
    """A variable, as the services that read it describe it."""

    defaults: list[str]
    readers: list[str]
    meanings: list[str]

    def row(self, name: str) -> str:
        """Return the variable's line of the table."""
        default, meaning = self._both(self.defaults), self._both(self.meanings)
        return f"| `TAILRACE_{name.upper()}` | {default} | {', '.join(self.readers)} | {meaning} |"

    def _both(self, texts: list[str]) -> str:
        return texts[0] if len(texts) == 1 else "; ".join(map("{}: {}".format, self.readers, texts))


def tables() -> str:
    """Return one heading and one table for each group in Markdown."""
    groups: dict[str, dict[str, Variable]] = defaultdict(dict)
    for service, settings in _SERVICES.items():
        for name, field in settings.model_fields.items():
            variable = groups[group_of(name, field)].setdefault(name, Variable([], [], []))
            variable.readers.append(service)
            default = _default(name, field)
            variable.defaults += [default] if default not in variable.defaults else []
            meaning = (field.description or "").rstrip(".")
            variable.meanings += [meaning] if meaning not in variable.meanings else []
    parts = []
    for group, title in GROUPS.items():
        rows = [variable.row(name) for name, variable in groups.pop(group).items()]
        parts.append(
            "\n".join([f"## {title}\n", "| variable | default | read by | meaning |", "|---|---|---|---|", *rows])
        )
    assert not groups, f"no title for {list(groups)}"
    return "\n\n".join(parts)


def group_of(name: str, field: FieldInfo) -> str:
    """Return the group that the field itself names, or that of the mapping above."""
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) and "group" in extra else _GROUP_OF[name]


def _default(name: str, field: FieldInfo) -> str:
    value = field.default
    if name == "cache_dir":
        return "`~/.cache/tailrace`"
    if value is None or value is PydanticUndefined or value in ((), ""):
        return "unset"
    if isinstance(value, Path):
        return f"`{value.relative_to(ROOT)}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
