"""Compatibility profiles: the API versions of Workers AI that a client can select. Does not depend on HTTP or gRPC."""

from dataclasses import dataclass
from typing import Literal, get_args

ProfileName = Literal["default", "2023-11", "2026"]
PROFILE_NAMES: tuple[ProfileName, ...] = get_args(ProfileName)
PROFILE_HEADER = "tailrace-profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The differences between API versions.

    Attributes:
        has_usage: Replies have token counts; streams have them in an event before [DONE].
        counts_cached: The token counts state how many prompt tokens came from the prefix cache.
        has_padding: The events of a stream contain random text as `p`.
        stream_max_tokens: Default of `max_tokens` in a stream; None: the model's sequence length.
        must_fit: A prompt that leaves less than `max_tokens` of the window is refused.
        pools_bge_by_mean: The English bge models use the mean of all tokens by default, otherwise the model's own pooling.
    """

    has_usage: bool = True
    counts_cached: bool = False
    has_padding: bool = False
    stream_max_tokens: int | None = None
    must_fit: bool = False
    pools_bge_by_mean: bool = False


# Default of `max_tokens` for a reply that is not streamed, in every profile: short enough to wait for.
DEFAULT_MAX_TOKENS = 256

PROFILES: dict[ProfileName, Profile] = {
    "default": Profile(),
    "2023-11": Profile(has_usage=False, pools_bge_by_mean=True),
    "2026": Profile(
        counts_cached=True,
        has_padding=True,
        stream_max_tokens=DEFAULT_MAX_TOKENS,
        must_fit=True,
        pools_bge_by_mean=True,
    ),
}
