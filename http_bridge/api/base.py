"""The input and the result of request parsing, which every public API shares."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.datastructures import Headers, QueryParams

from http_bridge.api.reply_writer import CompleteReply, ErrorWriter, ReplyWriter
from http_bridge.errors import ApiError
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.profiles import PROFILE_HEADER, PROFILE_NAMES, PROFILES, Profile, ProfileName
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.validation.documents import bad_input, inflated, load
from tailrace.v1.inference_pb2 import Completed, Model, RunRequest, RunResponse

# Size from which a body is parsed on another thread.
LARGE_BODY_BYTES = 100_000
_PLAIN_BEGINNINGS = (b"{", b" ", b"\n", b"\r", b"\t", b"")
_MAX_MODEL = 256  # longest model name, in characters
# Reply header that lists the types of the tools that were left out of the request because they are not functions.
SKIPPED_TOOLS_HEADER = "tailrace-skipped-tools"
_MAX_NOTICES = 16
_HEADER_TEXT = re.compile(r"[\w.:-]+", re.ASCII)
_UNSUPPORTED_ENCODINGS = ("br", "compress", "zstd")
logger = logging.getLogger(__name__)


class Models(Protocol):
    """The models of the inference servers as the bridge's polls found them. No method calls a server."""

    def find_model(self, name: str) -> Model | None:
        """Return the description of a model; None if no server is known to host it."""

    def find_adapter(self, name: str) -> Model | None:
        """Return the description of the first model that has a LoRA adapter of this name; None if there is none."""

    def has_current_model(self, name: str) -> bool:
        """Return True if `find_model` is up to date for this model."""


class OutdatedModels(Exception):
    """The bridge must fetch the lists of models from the servers before it can parse this request."""


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """An HTTP request whose body has been read.

    Attributes:
        request_id: UUID that the bridge assigned to the request.
        account: Account of the path, otherwise of the token; empty if neither has one.
        is_at_account: Whether the path names the account, as Cloudflare's paths do.
        model: Model of the path; empty if the path has none.
        headers: The request's headers.
        query: The request's query parameters.
        data: The body as received, possibly compressed.
        max_bytes: Size limit of the body in bytes, both as received and decompressed.
        has_padding: Whether the settings enable padding in streams.
        default_profile: Profile of a request without the profile header.
        bodies: Reads the fields of the body.
        models: The models of the inference servers.
        models_are_current: Whether `models` is recent enough for this request, so that `describe` does not raise.
        has_fixed_seeds: Whether every choice after the first has a fixed seed if the request has no seed.
    """

    request_id: str
    account: str
    is_at_account: bool
    model: str
    headers: Headers
    query: QueryParams
    data: bytes
    max_bytes: int
    has_padding: bool
    default_profile: ProfileName
    bodies: BodyReader
    models: Models
    models_are_current: bool = False
    has_fixed_seeds: bool = False

    @property
    def is_large(self) -> bool:
        """True if the body may take long to parse. A compressed body may become a thousand times as large."""
        is_plain = self.data[:1] in _PLAIN_BEGINNINGS and "content-encoding" not in self.headers
        return len(self.data) >= LARGE_BODY_BYTES or not is_plain

    def describe(self, model: str) -> Model | None:
        """Return the model's description; None if no server hosts it.

        Raises:
            OutdatedModels: The bridge must first fetch the lists of models from the servers.
        """
        if not self.models_are_current and not self.models.has_current_model(model):
            raise OutdatedModels
        return self.models.find_model(model)

    @property
    def profile(self) -> Profile:
        """The profile that the header names, otherwise the default profile from the settings.

        Raises:
            ApiError: 400/5006 for an unknown profile.
        """
        name = self.headers.get(PROFILE_HEADER, self.default_profile)
        for known in PROFILE_NAMES:
            if name == known:
                return PROFILES[known]
        raise bad_input(f"the header {PROFILE_HEADER} must be one of {', '.join(PROFILE_NAMES)}")

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the body, which may be compressed with gzip or deflate.

        Raises:
            ApiError: 400/3003 for an empty body, 413/3006 for one that is too large when decompressed, 400/5006 for
                another error.
        """
        try:
            return load(self.data, self.max_bytes)
        except ApiError:
            # Content-Encoding matters only if the body cannot be parsed: some SDKs send a wrong one with plain JSON.
            encoding = self.headers.get("content-encoding", "").strip().lower()
            if self.data and encoding == "deflate" and self.data[:1] != b"\x78":
                return load(inflated(self.data, self.max_bytes), self.max_bytes)
            if self.data and encoding in _UNSUPPORTED_ENCODINGS:
                raise bad_input(
                    f"the content-encoding {encoding} is not supported: send gzip, deflate or no encoding"
                ) from None
            raise


class Choices(Protocol):
    """Writes several replies to one request as the choices of one reply."""

    @property
    def requests(self) -> tuple[RunRequest, ...]:
        """The message to the inference server for each choice."""

    def event(self, index: int, event: RunResponse) -> bytes:
        """Return the chunks for an event of choice `index`; may be empty."""

    def finish(self, completed: Completed) -> bytes:
        """Return the end of the stream. `completed` has the usage of all choices."""

    def complete(self, replies: Sequence[CompleteReply]) -> bytes:
        """Return the complete reply with all choices in order."""

    def total(self, completed: Sequence[Completed]) -> Completed:
        """Return the first choice's `completed` with the usage of all choices. Each prompt counts once."""


@dataclass(frozen=True, slots=True)
class RunJob:
    """A parsed request: the message to the inference server, and the writer of the reply.

    Attributes:
        request: The message; the first one if there are several replies.
        writer: Writes the reply. If there are several replies, it writes only their errors.
        stream: Whether the client requested a stream.
        choices: Writes several replies, one to each of `choices.requests`; None: there is one reply, to `request`.
        notices: Additional headers of the reply.
        tags: A Worker's own tags for the log.
    """

    request: RunRequest
    writer: ReplyWriter
    stream: bool
    choices: Choices | None = None
    notices: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def requests(self) -> tuple[RunRequest, ...]:
        """The messages to the inference server, one for each reply."""
        return (self.request,) if self.choices is None else self.choices.requests

    @property
    def is_plain(self) -> bool:
        """True if no delta has tool calls or log probabilities, because the client requested neither."""
        return not self.request.chat.tools and not self.request.HasField("logprobs")


class DirectJob(ABC):
    """A parsed request that is answered with one JSON body, and that runs no model while its client waits.

    Attributes:
        model: Name of the model.
        account: Account of the request; empty if it has none.
    """

    model: str
    account: str

    @abstractmethod
    async def answer(self, state: Mapping[str, Any]) -> bytes:
        """Return the JSON body.

        Args:
            state: The objects that the application shares with every request.

        Raises:
            ApiError: The request is refused.
            AioRpcError: An inference server refused the request.
        """


class RequestParser(Protocol):
    """Reads the requests of one kind of route."""

    @property
    def errors(self) -> ErrorWriter:
        """The format of this route's errors."""

    def parse(self, incoming: IncomingRequest) -> RunJob | DirectJob:
        """Return the parsed request.

        Raises:
            ApiError: The request is invalid.
            OutdatedModels: The bridge must first fetch the lists of models from the servers.
        """


def check_model_name(name: str) -> str:
    """Return `name` if a model can have it.

    Raises:
        ApiError: 404/3042 if no model can have this name: it is empty, not printable, or longer than 256 characters.
    """
    if not name or len(name) > _MAX_MODEL or not name.isprintable():
        raise ApiError(404, 3042, "The model name is invalid")
    return name


def skipped_notice(body: RunBody) -> dict[str, str]:
    """Return the header with the types of the tools that were left out, and log them. Empty if no tool was left out."""
    if not body.skipped_tools:
        return {}
    # A type comes from the client, and a header cannot contain every character.
    names = [name if _HEADER_TEXT.fullmatch(name) else "other" for name in body.skipped_tools[:_MAX_NOTICES]]
    logger.info("tools that are not functions were left out: %s", ", ".join(names))
    return {SKIPPED_TOOLS_HEADER: ", ".join(dict.fromkeys(names))}
