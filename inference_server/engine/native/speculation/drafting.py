"""Chooses draft tokens for a decode step (speculative decoding), and counts how many of them were accepted.

A step then computes the newest token of a sequence and its draft tokens in one pass. Draft tokens that equal the sampled
ones are accepted (verification.py), so a step appends several tokens. A draft is used only if it is expected to
increase the tokens per second. The estimate uses the times of earlier steps (costs.py) and the sequence's earlier
drafts (acceptance.py). So replies that repeat nothing, and large batches, run without drafts.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import StepPlan
from inference_server.engine.native.speculation.acceptance import Acceptance
from inference_server.engine.native.speculation.costs import MAX_ROWS, StepCosts
from inference_server.engine.native.speculation.draft_model import DraftModel
from inference_server.engine.native.speculation.lookup import RUN_LENGTHS, PromptLookup
from inference_server.engine.sequence import Sequence

# Largest number of draft tokens of one sequence in a step.
MAX_DRAFT = 11
# Larger batches get no drafts: their rows fill the processor already, and the search would delay them.
MAX_SEQS = 4
# Drafts are used only if they are expected to increase the tokens per second by more than this factor.
_MARGIN = 1.05
# After this many successive steps whose drafts were not expected to save time, one draft token is computed anyway,
# because the estimate may be wrong. The number doubles with each such trial, up to _LONGEST_PATIENCE.
_FIRST_PATIENCE = 32
_LONGEST_PATIENCE = 1024
# Expected share of accepted draft tokens in a new sequence, by kind: lookups of each of RUN_LENGTHS, and a draft model.
FIRST_GUESSES = (0.9, 0.7, 0.45, 0.7)
_DRAFT_MODEL_KIND = len(RUN_LENGTHS)


@dataclass(slots=True)
class _State:
    """State of one sequence's drafts."""

    lookup: PromptLookup = field(default_factory=lambda: PromptLookup())
    acceptance: Acceptance = field(default_factory=lambda: Acceptance(FIRST_GUESSES))
    kind: int = 0  # kind of the draft in the current step: an index of FIRST_GUESSES


@dataclass(slots=True)
class _Found:
    """Draft tokens that a sequence could use. `tokens` is None if the draft model has yet to compute `count` tokens."""

    seq: Sequence
    state: _State
    kind: int
    count: int
    tokens: list[int] | None


class Drafting:
    """Chooser of draft tokens for one engine's sequences. Used on the engine's thread only.

    Attributes:
        num_drafted: Draft tokens computed since the start.
        num_accepted: Draft tokens accepted since the start.
        costs: Times of the decode steps.
    """

    def __init__(self, scheduler: Scheduler, max_rows: int = MAX_ROWS, draft_model: DraftModel | None = None) -> None:
        """Prepare drafts for a scheduler's sequences.

        Args:
            scheduler: Reserves blocks for draft tokens.
            max_rows: The largest number of rows of a decode pass.
            draft_model: Computes drafts for sequences if the lookup finds none; None: no draft model.
        """
        self._scheduler = scheduler
        self._max_rows = min(max_rows, MAX_ROWS)
        self._draft_model = draft_model
        self.num_drafted = 0
        self.num_accepted = 0
        self.costs = StepCosts()
        self._num_skipped = 0  # steps in a row whose drafts were not expected to save time
        self._patience = _FIRST_PATIENCE

    def with_drafts(self, plan: StepPlan) -> StepPlan:
        """Return the plan with the draft tokens that are expected to save time, or with one token if a trial is due."""
        num_seqs = len(plan.decode)
        if self._draft_model is not None:
            self._draft_model.keep(self._scheduler.running)
        if plan.prefill or not 0 < num_seqs <= MAX_SEQS or num_seqs >= self._max_rows:
            return plan
        found = self._found(plan.decode)
        chosen = self._chosen(found, num_seqs) or self._trial(found)
        drafts = {}
        for each, tokens in self._tokens_of(chosen):
            room = self._scheduler.reserve(each.seq, len(tokens))
            if room > 0:
                each.state.kind = each.kind
                drafts[each.seq] = tokens[:room]
        return dataclasses.replace(plan, drafts=drafts) if drafts else plan

    def expects(self, seqs: list[Sequence]) -> bool:
        """Return True if a step with drafts is expected to save time, or if the next trial is due.

        On a GPU the host may not have read the newest token yet, so the estimate may lack it. The caller reads this
        token before it plans a step with drafts.
        """
        if not 0 < len(seqs) <= MAX_SEQS or len(seqs) >= self._max_rows:
            return False
        if any(seq.is_prefilling for seq in seqs):
            return False
        found = self._found(seqs)
        if self._chosen(found, len(seqs)):
            return True
        self._num_skipped += bool(found)
        return self._num_skipped >= self._patience

    def checked(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Record how many draft tokens of a sequence were accepted."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        state = _state_of(seq)
        state.acceptance.add(state.kind, num_drafted, num_accepted)

    def _found(self, seqs: Iterable[Sequence]) -> list[_Found]:
        """Return a draft for each sequence that may have one."""
        results = []
        for seq in seqs:
            state = _state_of(seq)
            # A step appends one token more than it accepts, so the draft must leave room for this token.
            count = min(MAX_DRAFT, seq.num_tokens_left - 1)
            if count <= 0:
                continue
            kind, tokens = state.lookup.find(seq.token_ids, count)
            if tokens:
                results.append(_Found(seq, state, kind, len(tokens), tokens))
            elif self._draft_model is not None and not self._draft_model.is_broken:
                results.append(_Found(seq, state, _DRAFT_MODEL_KIND, count, None))
        return results

    def _chosen(self, found: list[_Found], num_seqs: int) -> list[tuple[_Found, int]]:
        """Return the drafts to use with their numbers of tokens.

        Draft tokens are sorted by their probability of acceptance. The number with the most expected tokens per second is
        used, or none if that does not exceed decoding without drafts by the factor _MARGIN.
        """
        gains = []
        for index, each in enumerate(found):
            share = probability = each.state.acceptance.share(each.kind)
            for _ in range(each.count):
                gains.append((probability, index))
                probability *= share
        gains.sort(reverse=True)  # within a sequence, earlier tokens have larger probabilities
        best = num_seqs / self.costs.ratio(num_seqs) * _MARGIN
        expected, extra, num_best = float(num_seqs), 0.0, 0
        for number, (probability, index) in enumerate(gains[: self._max_rows - num_seqs], 1):
            expected += probability
            extra += self._model_cost(found[index])
            speed = expected / (self.costs.ratio(num_seqs + number) + extra)
            if speed > best:
                best, num_best = speed, number
        if num_best:
            self._num_skipped, self._patience = 0, _FIRST_PATIENCE
        counts = [0] * len(found)
        for _, index in gains[:num_best]:
            counts[index] += 1
        for each, count in zip(found, counts, strict=True):
            if not count:
                each.state.acceptance.skip(each.kind)
        return [(each, count) for each, count in zip(found, counts, strict=True) if count]

    def _trial(self, found: list[_Found]) -> list[tuple[_Found, int]]:
        """Return one draft token to try if no draft was expected to save time for `_patience` steps, else nothing."""
        if not found:
            return []
        self._num_skipped += 1
        if self._num_skipped < self._patience:
            return []
        self._num_skipped = 0
        self._patience = min(_LONGEST_PATIENCE, 2 * self._patience)
        best = max(found, key=lambda each: each.state.acceptance.share(each.kind))
        return [(best, 1)]

    def _model_cost(self, found: _Found) -> float:
        """Return the time of one draft token, relative to a step of one row; 0 if no draft model computes it."""
        if found.tokens is not None or self._draft_model is None or not self.costs.base_seconds:
            return 0.0
        return self._draft_model.seconds_per_token / self.costs.base_seconds

    def _tokens_of(self, chosen: list[tuple[_Found, int]]) -> list[tuple[_Found, list[int]]]:
        ready = [(each, each.tokens[:count]) for each, count in chosen if each.tokens is not None]
        unready = [(each, count) for each, count in chosen if each.tokens is None]
        if unready and self._draft_model is not None:
            computed = self._draft_model.drafts([(each.seq, count) for each, count in unready])
            ready += [(each, tokens) for (each, _), tokens in zip(unready, computed, strict=True) if tokens]
        return ready


def _state_of(seq: Sequence) -> _State:
    state = seq.drafting
    if not isinstance(state, _State):
        state = seq.drafting = _State()
    return state
