"""Makes the tables of docs/errors.md: statuses and codes from the bridge's source, reasons from the server's contract."""

import ast
import re

from inference_server import errors as server_errors
from tests.support.processes import ROOT

# When a status and code is the answer. The code has the pairs, and a test compares both.
WHEN = {
    (400, 2008): "a Worker's gateway: another provider than workers-ai, or an endpoint that it does not have",
    (400, 3003): "the body or a required header is missing",
    (400, 5006): "a field is wrong or missing; the message names it",
    (400, 5007): "no such model; the message lists the models. 404 on OpenAI's routes",
    (400, 5023): "profile `2026-strict`: JSON mode in a stream",
    (400, 5024): "JSON mode, and the reply was cut",
    (
        400,
        5028,
    ): "Cloudflare removed this model, and no server here hosts it (404 on OpenAI's routes), or the profile is `2026-strict`",
    (
        400,
        6003,
    ): "invalid HTTP, or headers longer than `TAILRACE_MAX_HEADER_BYTES`; or the client stopped sending before the reply",
    (400, 7000): "no such route. 404 on OpenAI's routes",
    (400, 8006): "profile `2026-strict`: `max_tokens` or a time limit cut a forced tool call",
    (400, 9106): "no `Authorization` header, or a malformed one. 401 on OpenAI's routes",
    (401, 1000): "a wrong token, on the routes that verify one",
    (401, 10000): "a wrong token",
    (403, 10000): "a token of another account",
    (
        403,
        9109,
    ): "the bridge has no API tokens, and `Host` is neither a name of this machine nor in `TAILRACE_ALLOWED_HOSTS`",
    (404, 3042): "the model name in the path is not valid",
    (404, 5006): "no batch with this `request_id`, or another account's; and OpenAI's responses, which are not stored",
    (404, 5007): "no such model, on the routes that describe one",
    (404, 5098): "the server replays recordings, and there is none of this request ([Tests](testing.md))",
    (404, 7000): "a Worker's gateway has no logs, and there is no AutoRAG",
    (404, 7003): "the account in the path is not valid",
    (405, 5005): "`lora`: the model has no LoRA adapters",
    (405, 7001): "wrong method",
    (
        408,
        3007,
    ): "the request, its headers or its body took longer than the setting allows, or the client read too slowly",
    (413, 3006): "the body is too large, or a batch has too many requests",
    (413, 5021): "the prompt is longer than the model's context; the message has both numbers. 400 on OpenAI's routes",
    (429, 3021): "the account sent more requests than `TAILRACE_ACCOUNT_REQUESTS_PER_MINUTE`; with `Retry-After`",
    (
        429,
        3040,
    ): "the wait queue or the batch queue is full, or no slot is free before the deadline or with `options.rejectIfBusy`; with "
    "`Retry-After`",
    (500, 3000): "the model failed, or an internal error; the log has the cause under the request id",
    (503, 7009): "the inference server is unreachable, loading, stopping or stalled, or refuses the bridge; or all "
    "`TAILRACE_MAX_CONNECTIONS` are taken",
}


def raised() -> set[tuple[int, int]]:
    """Return status and code of every ApiError that the bridge's source creates."""
    pairs = set()
    for path in (ROOT / "http_bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ApiError":
                status, code = (ast.literal_eval(argument) for argument in node.args[:2])
                pairs.add((status, code))
    return pairs


def http_table() -> str:
    """Return the table of HTTP statuses and Cloudflare's codes in Markdown."""
    rows = [f"| {status} | {code} | {WHEN[status, code]} |" for status, code in sorted(raised())]
    return "\n".join(["| HTTP | code | when |", "|---|---|---|", *rows])


def grpc_table() -> str:
    """Return the table of reasons and gRPC statuses in Markdown, in the contract's order and words."""
    rows = [f"| `{reason}` | {status} | {meaning} |" for reason, status, meaning in contract()]
    return "\n".join(["| reason | status | when |", "|---|---|---|", *rows])


def contract() -> list[tuple[str, str, str]]:
    """Return reason, status and meaning from the comment at the top of inference.proto."""
    text = (ROOT / "proto" / "tailrace" / "v1" / "inference.proto").read_text(encoding="utf-8")
    comment = re.sub(r"\n//\s{20,}", " ", text.partition("\npackage ")[0])
    return re.findall(r"^//   ([A-Z_]+) +([A-Z_]+) +(.+)$", comment, re.MULTILINE)


def reasons() -> set[str]:
    """Return the reasons of the server's error classes."""
    return {error.reason for error in server_errors.TailraceError.__subclasses__()}
