"""Client of the bridge, with the standard library only.

Replies come from OpenAI's routes, whose streams also report the finish reason and the model's thoughts. Without an account
these routes take it from the API token.
"""

import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from tailrace_cli.client import ModelLine, Piece, ReplyStats, Request, unknown_model
from tailrace_cli.errors import Failure, Refusal, TooLong
from tailrace_shared.accounts import is_account

_API = "/client/v4"
_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 30.0
# The account of a bridge without tokens, which accepts every name.
_ANY_ACCOUNT = "local"
# Cloudflare's codes, in this order: no token, wrong token, prompt too long; a model that is unknown, removed or has
# another task; an unknown route.
_NO_TOKEN, _WRONG_TOKEN, _TOO_LONG = 9106, 10000, 5021
_UNKNOWN_MODEL = (5007, 5028)
_UNROUTED = 7000
# Exceptions from reading a JSON document that does not have the format of the bridge's replies.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
# Response header with the error in plain words, percent-encoded.
_PLAIN_HEADER = "tailrace-error"
_PREFIX = "Bad input: Error: "
# The bridge's sentence if it reaches no inference server, and the command's sentence for it.
_UNREACHED = "Upstream service unavailable"
_NO_SERVER = (
    "The bridge reaches no inference server. Is one running? `tailrace serve` starts both services, and `tailrace doctor` "
    "looks for the cause."
)


class RestClient:
    """A client of one bridge. Opens a connection for each request."""

    def __init__(self, url: str, token: str, account: str = "") -> None:
        """Check the arguments without opening a connection.

        Args:
            url: http:// or https:// with a host, and optionally a port and a path.
            token: API token; empty for a bridge without tokens.
            account: Account whose models are called; empty: the token's.

        Raises:
            Failure: `url` is not such a URL, or the token or the account's name is invalid.
        """
        self._url = url.rstrip("/")
        try:
            self._parts = urlsplit(self._url)
            self._port = self._parts.port
        except ValueError as error:
            raise Failure(f"{url} is not the URL of a bridge: {error}.") from None
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname:
            raise Failure(f"{url} is not the URL of a bridge; an example is http://127.0.0.1:8787")
        if account and not is_account(account):
            raise Failure(
                f"{account!r} is not the name of an account: use letters, digits, dots, dashes and underscores."
            )
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise Failure(
                "An API token consists of printable ASCII characters, without spaces. Check --token or TAILRACE_TOKEN."
            )
        self._account = account
        self._token = token
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {token or 'any-token'}"}

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[Piece]:
        """Yield the reply piece by piece; see Client."""
        base = f"{_API}/accounts/{self._account}/ai/v1" if self._account else "/v1"
        path = f"{base}/{'completions' if request.raw else 'chat/completions'}"
        try:
            connection, response = self._send("POST", path, json.dumps(_body(request)).encode())
        except _UnknownModel:
            raise unknown_model(self, request.model) from None
        try:
            yield from _pieces(response, stats)
        except (OSError, http.client.HTTPException) as error:
            raise Failure(
                f"The connection to {self._url} broke in the middle of the reply ({_reason(error)})."
            ) from None
        except _MALFORMED:
            raise self._stranger() from None
        finally:
            connection.close()

    def models(self) -> list[ModelLine]:
        """Return the models that the bridge lists, 1000 at most. Waits 30 s at most for each answer."""
        found = self._result(f"{_API}/accounts/{self.account()}/ai/models/search?per_page=1000")
        try:
            return [_model_line(model) for model in found]
        except _MALFORMED:
            raise self._stranger() from None

    def account(self) -> str:
        """Return the account of the requests: the given one, else the token's; "local" if there is no token."""
        if not self._account and self._token:
            try:
                self._account = str(self._result(f"{_API}/accounts")[0]["id"])
            except _Unrouted:  # an older bridge, which has no list of accounts
                return _ANY_ACCOUNT
            except _MALFORMED:
                raise self._stranger() from None
        return self._account or _ANY_ACCOUNT

    def _result(self, path: str) -> Any:
        """Return the `result` of a response in Cloudflare's envelope."""
        connection, response = self._send("GET", path, seconds=_LIST_SECONDS)
        try:
            return json.load(response)["result"]
        except _MALFORMED:
            raise self._stranger() from None
        except (OSError, http.client.HTTPException) as error:
            raise self._explain(error) from None
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: bytes | None = None, *, seconds: float | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send one request. Return the connection and the response, which has status 200.

        Args:
            method: HTTP method.
            path: Path to append to the path of the bridge's URL.
            body: JSON document.
            seconds: Longest silence of the bridge; None: unbounded, because a prompt may take arbitrarily long.

        Raises:
            Failure: The bridge cannot be reached.
            Refusal: The response has another status.
        """
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            connection.request(method, f"{self._parts.path}{path}", body, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._explain(error) from None
        except BaseException:  # for example Ctrl-C while the server processes the prompt
            connection.close()
            raise
        if response.status != 200:
            refusal = self._refusal(response)
            connection.close()
            raise refusal
        return connection, response

    def _stranger(self) -> Failure:
        return Failure(f"{self._url} answers, but not as a bridge of Tailrace does. Check --url, or TAILRACE_URL.")

    def _explain(self, error: Exception) -> Failure:
        # A closed connection (RemoteDisconnected) is both an OSError and a BadStatusLine, and its message is clear to
        # the user.
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
            return Failure(f"{self._url} does not speak HTTP/1.1; is it the gRPC address?")
        return Failure(f"No bridge answers at {self._url} ({_reason(error)}). Start one with `tailrace serve`.")

    def _refusal(self, response: http.client.HTTPResponse) -> Refusal:
        """Return the error for a response whose status is not 200."""
        try:
            body = json.load(response)
            code = int(body["errors"][0]["code"])
            message = unquote(response.getheader(_PLAIN_HEADER, "")) or _sentence(body)
        except (*_MALFORMED, OSError, http.client.HTTPException):
            return Refusal(f"The bridge answered {response.status} {response.reason}.")
        if code == _NO_TOKEN or (code == _WRONG_TOKEN and not self._token):
            return Refusal("The bridge requires an API token. Pass one with --token or TAILRACE_TOKEN.")
        if code == _WRONG_TOKEN and response.status == 403:
            return Refusal(
                f"The API token is not for the account {self._account}. Pass its own account with --account or "
                "TAILRACE_ACCOUNT, or none."
            )
        if code == _WRONG_TOKEN:
            return Refusal("The bridge does not accept this API token. Check --token or TAILRACE_TOKEN.")
        if code in _UNKNOWN_MODEL:
            return _UnknownModel(message)
        if code == _UNROUTED:
            return _Unrouted(f"{self._url} has no such route: {message}.")
        return (TooLong if code == _TOO_LONG else Refusal)(message)


class _UnknownModel(Refusal):
    """No server hosts the model, or it does not generate text."""


class _Unrouted(Refusal):
    """The bridge has no route for the request."""


def _body(request: Request) -> dict[str, object]:
    """Return the JSON body of a request to one of OpenAI's routes."""
    body: dict[str, object] = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    body |= request.sampling
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema is not None:
        schema = {"name": "reply", "schema": json.loads(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.raw:
        return body | {"prompt": request.prompt}
    if request.continues:
        body["continue_final_message"] = True
    return body | {"messages": [{"role": role, "content": content} for role, content in request.messages]}


def _pieces(lines: Iterable[bytes], stats: ReplyStats) -> Iterator[Piece]:
    """Yield the pieces of a stream's events. Raises Refusal if the stream fails or ends without [DONE]."""
    for line in lines:
        # A line without data is a keep-alive comment, or the blank line after an event.
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise Refusal(f"The reply failed: {_sentence(event)}")
        if usage := event.get("usage"):
            stats.prompt_tokens, stats.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in event.get("choices", ()):
            stats.finish = choice.get("finish_reason") or stats.finish
            delta = choice.get("delta") or {"content": choice.get("text")}
            if thoughts := delta.get("reasoning_content"):
                yield Piece(thoughts, is_thinking=True)
            if text := delta.get("content"):
                yield Piece(text)
    raise Refusal("The bridge ended the reply too early. Ask again; the server's log has the cause.")


def _sentence(body: Mapping[str, Any]) -> str:
    """Return the sentence of an error for the user, without the prefix that programs parse."""
    error = body.get("error")
    text = str(error["message"] if isinstance(error, dict) else body["errors"][0]["message"]).removeprefix(_PREFIX)
    if _UNREACHED in text:
        return _NO_SERVER
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _model_line(model: Mapping[str, Any]) -> ModelLine:
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
