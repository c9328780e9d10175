"""What a surface is given and what it makes of it."""

from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers, QueryParams

from http_bridge.api.reply_writer import ErrorForm, ReplyForm
from http_bridge.errors import ApiError
from http_bridge.protocol.profiles import PROFILE_HEADER, PROFILE_NAMES, PROFILES, Profile, ProfileName
from http_bridge.protocol.run_body import BodyReader
from http_bridge.protocol.validation import bad_input
from tailrace.v1.inference_pb2 import RunRequest

_MAX_MODEL = 256


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request whose body was read.

    account: who asks: the path's account, else the token's; empty if neither names one.
    is_at_account: whether the path names the account, as Cloudflare's do.
    model: of the path; empty where the path has none.
    """

    request_id: str
    account: str
    is_at_account: bool
    model: str
    headers: Headers
    query: QueryParams
    data: bytes
    max_bytes: int  # of the body, also when it is unpacked
    has_padding: bool
    default_profile: ProfileName
    bodies: BodyReader

    @property
    def profile(self) -> Profile:
        """The one that the request's header names, or the bridge's own. Raises ApiError 400/5006 for an unknown one."""
        name = self.headers.get(PROFILE_HEADER, self.default_profile)
        for known in PROFILE_NAMES:
            if name == known:
                return PROFILES[known]
        raise bad_input(f"the header {PROFILE_HEADER} must be one of {', '.join(PROFILE_NAMES)}")


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask of the inference server, and how its reply is to be written."""

    request: RunRequest
    form: ReplyForm
    stream: bool

    @property
    def is_plain(self) -> bool:
        """Whether deltas hold nothing but text."""
        return not self.request.chat.tools and not self.request.HasField("logprobs")


class Surface(Protocol):
    """One kind of route."""

    @property
    def errors(self) -> ErrorForm: ...

    def read(self, call: Call) -> Job:
        """Raises ApiError for a request that is refused."""


def check_model_name(name: str) -> str:
    """Raises ApiError 404/3042 for what can be no model's name."""
    if not name or len(name) > _MAX_MODEL or not name.isprintable():
        raise ApiError(404, 3042, "The model name is invalid")
    return name
