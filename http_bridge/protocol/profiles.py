"""Compatibility profiles: the API versions of Workers AI that a client can select. Does not depend on HTTP or gRPC."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

ProfileName = Literal["default", "2023-11", "2026", "2026-strict"]
PROFILE_NAMES: tuple[ProfileName, ...] = get_args(ProfileName)
PROFILE_HEADER = "tailrace-profile"
# Workers AI's default of `max_tokens`: short enough for clients that wait for the whole reply.
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The differences between API versions.

    Attributes:
        has_usage: Replies have token counts; streams have them in an event before [DONE].
        counts_cached: The token counts state how many prompt tokens came from the prefix cache.
        has_padding: The events of a stream contain random text as `p`.
        has_reasoning: Replies of /ai/run have the model's thoughts in a separate field. Otherwise the thoughts are left
            out.
        max_tokens: Default of `max_tokens` in a reply that is not streamed; None: the model's sequence length.
        stream_max_tokens: Default of `max_tokens` in a stream; None: the model's sequence length.
        openai_max_tokens: Default of `max_tokens` on the OpenAI routes of an account; None: the model's sequence length.
        has_comments: Streams have comments while they are silent.
        must_fit: A prompt that leaves less than `max_tokens` of the window is refused.
        is_strict: Requests that Workers AI refuses in production are refused, although Tailrace could serve them.
        pools_bge_by_mean: The English bge models use the mean of all tokens by default. Otherwise they use their own pooling.
    """

    has_usage: bool = True
    counts_cached: bool = False
    has_padding: bool = False
    has_reasoning: bool = True
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    stream_max_tokens: int | None = None
    openai_max_tokens: int | None = None
    has_comments: bool = True
    must_fit: bool = False
    is_strict: bool = False
    pools_bge_by_mean: bool = False

    def for_openai(self, *, is_at_account: bool) -> "Profile":
        """Return the profile for an OpenAI route.

        Args:
            is_at_account: Whether the path names an account, as at Cloudflare. The other paths have OpenAI's meaning in
                every profile: an unset `max_tokens` is the model's sequence length.
        """
        limit = self.openai_max_tokens if is_at_account else None
        return replace(self, max_tokens=limit, stream_max_tokens=limit, must_fit=self.must_fit and limit is not None)


_PROFILE_2026 = Profile(
    counts_cached=True,
    has_padding=True,
    stream_max_tokens=DEFAULT_MAX_TOKENS,
    openai_max_tokens=DEFAULT_MAX_TOKENS,
    must_fit=True,
    pools_bge_by_mean=True,
)
PROFILES: dict[ProfileName, Profile] = {
    "default": Profile(),
    "2023-11": Profile(has_usage=False, has_reasoning=False, has_comments=False, pools_bge_by_mean=True),
    "2026": _PROFILE_2026,
    "2026-strict": replace(_PROFILE_2026, is_strict=True),
}
