"""Estimates the share of a sequence's draft tokens that will be accepted, from earlier acceptances."""

from collections.abc import Iterable

_WEIGHT = 0.1  # weight of the newest draft token in the estimate
# Each step in which a draft was found but not used raises the estimate by this share of its distance to 1. So a
# sequence whose estimate is too low for any draft gets another one from time to time.
_RECOVERY = 0.002


class Acceptance:
    """Share of accepted draft tokens of one sequence, by kind of draft (see drafting.FIRST_GUESSES)."""

    __slots__ = ("_shares",)

    def __init__(self, guesses: Iterable[float]) -> None:
        """Start with a guess for each kind, 0 to 1."""
        self._shares = list(guesses)

    def share(self, kind: int) -> float:
        """Return the estimated probability that the next draft token of this kind is accepted, 0 to 1."""
        return self._shares[kind]

    def add(self, kind: int, num_drafted: int, num_accepted: int) -> None:
        """Record a checked draft. Tokens after the first rejected one do not count."""
        share = self._shares[kind]
        for _ in range(num_accepted):
            share += _WEIGHT * (1.0 - share)
        if num_accepted < num_drafted:
            share -= _WEIGHT * share
        self._shares[kind] = share

    def skip(self, kind: int) -> None:
        """Record that a draft was found and not used."""
        self._shares[kind] += _RECOVERY * (1.0 - self._shares[kind])
