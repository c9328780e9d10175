"""Client of the bridge: Workers AI's REST interface, with the standard library only."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from tailrace_cli.client import ModelLine, ReplyStats, Request
from tailrace_cli.errors import Failure, Refusal

_API = "/client/v4/accounts/local/ai"
_CONNECT_SECONDS = 10.0
_NUMBERS = ("max_tokens", "temperature", "top_p", "seed")


class RestClient:
    """A client of one bridge. Opens a connection for each request."""

    def __init__(self, url: str, token: str) -> None:
        """Check the URL without opening a connection.

        Args:
            url: http:// or https:// with a host, and optionally a port and a path.
            token: API token; empty for a bridge without tokens.

        Raises:
            Failure: `url` is not such a URL.
        """
        self._url = url.rstrip("/")
        try:
            self._parts = urlsplit(self._url)
            self._port = self._parts.port
        except ValueError as error:
            raise Failure(f"{url} is not the URL of a bridge: {error}.") from None
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise Failure(f"{url} is not the URL of a bridge; an example is http://127.0.0.1:8787")
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {token or 'any-token'}"}

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[str]:
        """Yield the reply's text piece by piece; see Client."""
        numbers = {name: getattr(request, name) for name in _NUMBERS}
        body: dict[str, object] = {name: value for name, value in numbers.items() if value is not None}
        body["stream"] = True
        if request.stop:
            body["stop"] = list(request.stop)
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": json.loads(request.schema)}
        if request.raw:
            body |= {"prompt": request.prompt, "raw": True}
        else:
            body["messages"] = [{"role": role, "content": content} for role, content in request.messages]
        connection, response = self._send("POST", f"/run/{quote(request.model, safe='/@')}", json.dumps(body).encode())
        try:
            yield from _texts(response, stats)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"The connection to {self._url} broke: {error}.") from None
        finally:
            connection.close()

    def models(self) -> list[ModelLine]:
        """Return the models that the bridge lists, 1000 at most."""
        connection, response = self._send("GET", "/models/search?per_page=1000")
        try:
            found = json.load(response)["result"]
        finally:
            connection.close()
        return [_model_line(model) for model in found]

    def _send(
        self, method: str, path: str, body: bytes | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send one request. Return the connection and the response, which has status 200.

        Raises:
            Failure: The bridge cannot be reached.
            Refusal: The response has another status.
        """
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            # The timeout applies to connecting only, because a reply may take arbitrarily long.
            connection.sock.settimeout(None)
            connection.request(method, f"{self._parts.path}{_API}{path}", body, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._explain(error) from None
        if response.status != 200:
            refusal = _refusal(response)
            connection.close()
            raise refusal
        return connection, response

    def _explain(self, error: Exception) -> Failure:
        # A closed connection (RemoteDisconnected) is both an OSError and a BadStatusLine, and its message is clear to
        # the user.
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
            return Failure(f"{self._url} does not speak HTTP/1.1; is it the gRPC address?")
        return Failure(f"No bridge answers at {self._url} ({error}). Start one with `tailrace serve`.")


def _texts(response: http.client.HTTPResponse, stats: ReplyStats) -> Iterator[str]:
    """Yield the text of each event of a stream. Raises Refusal if the stream fails or ends without [DONE]."""
    for line in response:
        # A line without data is a comment of a silent stream, or the blank line after an event.
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if errors := event.get("errors"):
            raise Refusal(f"The reply failed: {errors[0]['message']} ({errors[0]['code']})")
        if usage := event.get("usage"):
            stats.prompt_tokens, stats.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if text := event.get("response"):
            yield text
    raise Refusal("The bridge ended the reply too early.")


def _refusal(response: http.client.HTTPResponse) -> Refusal:
    try:
        error = json.load(response)["errors"][0]
    except (ValueError, LookupError, TypeError):
        return Refusal(f"The bridge answered {response.status} {response.reason}.")
    if error["code"] in (9106, 10000):
        return Refusal("The bridge requires an API token. Pass one with --token or TAILRACE_TOKEN.")
    return Refusal(f"{error['message']} ({error['code']})")


def _model_line(model: dict[str, Any]) -> ModelLine:
    values = {item["property_id"]: item["value"] for item in model.get("properties", [])}
    context, sequence = (int(values.get(f"{kind}_length_limit", 0)) for kind in ("context", "sequence"))
    longest_text, dimensions = (int(values.get(name, 0)) for name in ("max_input_tokens", "output_dimensions"))
    return ModelLine(
        model["name"],
        model.get("description", ""),
        context or longest_text,
        sequence,
        dimensions,
        str(values.get("weights", "")),
        str(values.get("precision", "")),
    )
