"""Checks the draft tokens of a step: samples a token at each position, and accepts drafts up to the first difference.

The random numbers of a position depend on the request's seed and the position only (gumbel.py). If all draft tokens
before a row are accepted, its logits equal those of a step without drafts, up to rounding. So the reply is the same as
without drafts, at any temperature. Rejected tokens leave keys and values in the cache, which later steps overwrite
before they read them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from inference_server.engine.native.sampler import NotFinite, Sample
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import StepPlan
from inference_server.engine.native.speculation.drafting import Drafting
from inference_server.engine.native.step_rows import GrammarLimit, Logits
from inference_server.engine.sequence import Sequence


class Appender(Protocol):
    """The methods of StepLoop that append sampled tokens."""

    def sampled(self, logits: Logits) -> Iterable[tuple[Sequence, Sample]]:
        """Yield each sequence with its sampled token. Sequences whose row cannot be sampled fail and are left out."""

    def append_sample(self, seq: Sequence, sample: Sample, now: float) -> None:
        """Append a sampled token to its sequence, which may end the reply."""


@dataclass(slots=True)
class _Check:
    """The rows of one sequence: row `first` for its newest token, and one more row for each draft token."""

    seq: Sequence
    first: int
    drafts: list[int]
    samples: list[Sample] | None = None  # samples of all rows, if they do not depend on each other


def verify(
    plan: StepPlan,
    rows: Tensor,
    *,
    appender: Appender,
    scheduler: Scheduler,
    drafting: Drafting,
    sample: Callable[[Logits], list[Sample]] | None,
) -> None:
    """Append the tokens of a step with drafts to its sequences.

    Args:
        plan: The step. The tokens that it decodes count as computed already; the draft tokens do not.
        rows: Logits of each sequence's newest token and its draft tokens, sequence by sequence: float32 of shape
            (num_rows, vocab_size). They may be changed.
        appender: Samples single rows, and appends tokens.
        scheduler: Records computed tokens.
        drafting: Records accepted tokens.
        sample: Samples several rows of a sequence at once; None if the rows must be sampled one after the other.
    """
    checks, first = [], 0
    for seq in plan.decode:
        drafts = plan.drafts.get(seq, [])
        checks.append(_Check(seq, first, drafts))
        first += 1 + len(drafts)
    if sample is not None:
        _sample_ahead(checks, rows, sample)
    number = 0
    while checks:
        checks = [check for check in checks if _goes_on(check, number, drafting)]
        if number:
            scheduler.decoded([check.seq for check in checks])
        checks = _append(checks, number, rows, appender)
        number += 1


def _sample_ahead(checks: list[_Check], rows: Tensor, sample: Callable[[Logits], list[Sample]]) -> None:
    """Sample all rows of the sequences without penalties or grammar in one call, because these rows are independent."""
    ahead = [check for check in checks if check.drafts and _is_independent(check.seq)]
    places = [(check, number) for check in ahead for number in range(1 + len(check.drafts))]
    if not places:
        return
    indices = [check.first + number for check, number in places]
    logits = Logits(
        rows if len(indices) == len(rows) else rows[indices],
        [check.seq for check, _ in places],
        [number for _, number in places],
    )
    try:
        samples = sample(logits)
    except (NotFinite, GrammarLimit):
        return  # the row that failed may follow a rejected token, so the rows are sampled one after the other instead
    for (check, _), chosen in zip(places, samples, strict=True):
        check.samples = [*(check.samples or []), chosen]


def _is_independent(seq: Sequence) -> bool:
    return seq.penalties is None and seq.request.constraint is None


def _goes_on(check: _Check, number: int, drafting: Drafting) -> bool:
    """Return True if row `number` is needed: the sequence has not ended, and the previous draft token was accepted.

    Otherwise also records how many draft tokens were accepted.
    """
    if not number:
        return True
    seq, drafts = check.seq, check.drafts
    is_accepted = number <= len(drafts) and seq.token_ids[-1] == drafts[number - 1]
    if is_accepted and seq.block_ids:  # a sequence without blocks has ended
        return True
    if drafts:
        drafting.checked(seq, len(drafts), number - 1 + is_accepted)
    return False


def _append(checks: list[_Check], number: int, rows: Tensor, appender: Appender) -> list[_Check]:
    """Append the token of row `number` to each sequence. Returns the checks of the sequences that have not failed."""
    single = [check for check in checks if check.samples is None]
    sampled: dict[Sequence, Sample] = {}
    if single:
        indices = [check.first + number for check in single]
        sampled = dict(appender.sampled(Logits(rows[indices], [check.seq for check in single])))
    now = time.monotonic()
    kept = []
    for check in checks:
        chosen = sampled.get(check.seq) if check.samples is None else check.samples[number]
        if chosen is not None:
            appender.append_sample(check.seq, chosen, now)
            kept.append(check)
    return kept
