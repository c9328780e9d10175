"""Which Workers AI a client is spoken to: the announcement's, today's, or the default between them. Knows no transport."""

from dataclasses import dataclass
from typing import Literal, get_args

ProfileName = Literal["default", "2023-11", "2026"]
PROFILE_NAMES: tuple[ProfileName, ...] = get_args(ProfileName)
PROFILE_HEADER = "tailrace-profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What differs between the ages of the service.

    has_usage: replies, and streams in an event of their own before [DONE], tell the token counts.
    counts_cached: the token counts tell what the prefix cache held.
    has_padding: the events of a stream hold random text as `p`.
    stream_max_tokens: what a stream without `max_tokens` may have; None: the model's sequence length.
    must_fit: a prompt that leaves less than `max_tokens` of the window is refused.
    """

    has_usage: bool = True
    counts_cached: bool = False
    has_padding: bool = False
    stream_max_tokens: int | None = None
    must_fit: bool = False


# Without `max_tokens`, a reply that is not streamed stays short enough to wait for, in each age.
DEFAULT_MAX_TOKENS = 256

PROFILES: dict[ProfileName, Profile] = {
    "default": Profile(),
    "2023-11": Profile(has_usage=False),
    "2026": Profile(counts_cached=True, has_padding=True, stream_max_tokens=DEFAULT_MAX_TOKENS, must_fit=True),
}
