"""The way through the bridge: Workers AI's REST interface, by the standard library alone."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from tailrace_cli.asking import Ask, Failure, Figures, ModelLine, Refusal

_API = "/client/v4/accounts/local/ai"
_CONNECT_SECONDS = 10.0
_NUMBERS = ("max_tokens", "temperature", "seed")


class RestDoor:
    """A bridge at `url`."""

    def __init__(self, url: str, token: str) -> None:
        """url: http:// or https://, with a host and perhaps a port and a path. Raises Failure for anything else."""
        self._url = url.rstrip("/")
        self._parts = urlsplit(self._url)
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise Failure(f"{url} is no address of a bridge; one looks like http://127.0.0.1:8787")
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {token or 'any-token'}"}

    def stream(self, ask: Ask, figures: Figures) -> Iterator[str]:
        body: dict[str, object] = {name: getattr(ask, name) for name in _NUMBERS if getattr(ask, name) is not None}
        body["stream"] = True
        if ask.raw:
            body |= {"prompt": ask.prompt, "raw": True}
        else:
            body["messages"] = [{"role": role, "content": content} for role, content in ask.messages]
        connection, response = self._ask("POST", f"/run/{quote(ask.model, safe='/@')}", json.dumps(body).encode())
        try:
            yield from _texts(response, figures)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"The connection to {self._url} broke: {error}.") from None
        finally:
            connection.close()

    def models(self) -> list[ModelLine]:
        connection, response = self._ask("GET", "/models/search?per_page=1000")
        try:
            found = json.load(response)["result"]
        finally:
            connection.close()
        return [_line(model) for model in found]

    def _ask(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            # A reply takes as long as it takes.
            connection.sock.settimeout(None)
            connection.request(method, f"{self._parts.path}{_API}{path}", body, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Failure(f"No bridge answers at {self._url} ({error}): start one with `tailrace serve`.") from None
        if response.status != 200:
            refusal = _refusal(response)
            connection.close()
            raise refusal
        return connection, response


def _texts(response: http.client.HTTPResponse, figures: Figures) -> Iterator[str]:
    for line in response:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        if not data:
            continue
        event = json.loads(data)
        if errors := event.get("errors"):
            raise Refusal(f"The reply failed: {errors[0]['message']} ({errors[0]['code']})")
        if usage := event.get("usage"):
            figures.prompt_tokens, figures.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if text := event.get("response"):
            yield text
    raise Refusal("The reply ended too early.")


def _refusal(response: http.client.HTTPResponse) -> Refusal:
    try:
        error = json.load(response)["errors"][0]
    except (ValueError, LookupError, TypeError):
        return Refusal(f"The bridge answered {response.status} {response.reason}.")
    if error["code"] in (9106, 10000):
        return Refusal("The bridge asks for an API token: give one with --token or TAILRACE_TOKEN.")
    return Refusal(f"{error['message']} ({error['code']})")


def _line(model: dict[str, Any]) -> ModelLine:
    values = {item["property_id"]: item["value"] for item in model.get("properties", [])}
    context, sequence = (int(values.get(f"{kind}_length_limit", 0)) for kind in ("context", "sequence"))
    return ModelLine(model["name"], model.get("description", ""), context, sequence)
