"""Finds draft tokens in a sequence itself: the tokens after the last earlier occurrence of its newest tokens.

Replies that edit code, extract or summarise repeat parts of their prompt. Works with token ids only.
"""

from collections.abc import Sequence as Items

# Lengths in tokens of the runs that are looked up, longest first. Matches of long runs are more reliable, and matches
# of short runs are more frequent.
RUN_LENGTHS = (8, 4, 2)


class PromptLookup:
    """Index of the runs of tokens in one sequence's prompt and reply. Each lookup first indexes the new tokens."""

    __slots__ = ("_followers", "_num_indexed")

    def __init__(self) -> None:
        """Create an empty index."""
        # For each length, the place of the token after the last occurrence of each run, by hash of the run. Hashes need
        # less memory than tuples. A collision only causes a wrong draft, which is rejected.
        self._followers: list[dict[int, int]] = [{} for _ in RUN_LENGTHS]
        self._num_indexed = 0

    def find(self, token_ids: Items[int], count: int) -> tuple[int, list[int]]:
        """Return the tokens that may come next.

        Args:
            token_ids: All tokens of the sequence, which begin with those of the previous call.
            count: The largest number of tokens to return.

        Returns:
            The index in RUN_LENGTHS of the run that was found, and 1 to `count` tokens; 0 and no tokens if none was
            found.
        """
        self._index(token_ids)
        for kind, (length, followers) in enumerate(zip(RUN_LENGTHS, self._followers, strict=True)):
            place = followers.get(hash(tuple(token_ids[-length:])))
            if place is not None:
                return kind, list(token_ids[place : place + count])
        return 0, []

    def _index(self, token_ids: Items[int]) -> None:
        """Index the runs that have a token after them. The newest run has none yet."""
        end = len(token_ids)
        for length, followers in zip(RUN_LENGTHS, self._followers, strict=True):
            first = max(0, self._num_indexed - length)
            tail = token_ids[first:]
            runs = zip(*(tail[offset:] for offset in range(length)), strict=False)
            followers.update(zip(map(hash, runs), range(first + length, end), strict=False))
        self._num_indexed = end
