"""Computes draft tokens with a smaller model that has the same tokenizer and a separate KV cache.

Draft tokens are sampled with the request's parameters and the random numbers of their positions. So if both models
compute the same probabilities, they sample the same token, at any temperature.
"""

import logging
import time
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.native.sampler import Row, sample
from inference_server.engine.sequence import Sequence
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece

logger = logging.getLogger(__name__)

_CHUNK_TOKENS = 256  # largest number of tokens that one prefill pass computes
_LAST_TOKENS = 2  # number of a sequence's last tokens that the first pass of a draft computes
_TIME_WEIGHT = 0.2  # weight of the newest draft in the estimated time per token


@dataclass(slots=True)
class _Cached:
    """The blocks of one sequence, and the tokens whose keys and values they contain."""

    block_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    num_checked: int = 0  # leading tokens that are known to equal the sequence's


class DraftModel:
    """A draft model. Used on the engine's thread only.

    Attributes:
        seconds_per_token: Estimated time to compute one draft token; 0 before the first draft.
        is_broken: True after a failure. From then on, all drafts are empty.
    """

    def __init__(self, runner: ModelRunner, *, max_seqs: int, max_len: int, vocab_size: int) -> None:
        """Divide the runner's KV cache among sequences.

        Args:
            runner: Computes the draft model's passes. Its cache must have as many blocks as `num_blocks` returns.
            max_seqs: Sequences that get drafts at the same time.
            max_len: Tokens of the longest sequence.
            vocab_size: Vocabulary size of the model that checks the drafts.
        """
        self._runner = runner
        self._vocab_size = vocab_size
        each = num_blocks(1, max_len, runner.cache.block_size)
        starts = range(NUM_SCRATCH_BLOCKS, NUM_SCRATCH_BLOCKS + max_seqs * each, each)
        self._free = [list(range(start, start + each)) for start in starts]
        self._cached: dict[Sequence, _Cached] = {}
        self.seconds_per_token = 0.0
        self.is_broken = False

    def keep(self, running: Collection[Sequence]) -> None:
        """Release the blocks of all sequences that are not in `running`."""
        for seq in [seq for seq in self._cached if seq not in running]:
            self._free.append(self._cached.pop(seq).block_ids)

    @torch.inference_mode()
    def drafts(self, wanted: Items[tuple[Sequence, int]]) -> list[list[int]]:
        """Return draft tokens for each pair of a sequence and its largest number of draft tokens.

        The number must be below that of the tokens left in the reply. Drafts are empty after a failure, and if no
        blocks are free for the sequence.
        """
        if self.is_broken:
            return [[] for _ in wanted]
        try:
            return self._drafts(wanted)
        except Exception:
            logger.exception("the draft model failed: this server continues without its drafts")
            self.is_broken = True
            return [[] for _ in wanted]

    def _drafts(self, wanted: Items[tuple[Sequence, int]]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in wanted]
        active = [index for index, (seq, _) in enumerate(wanted) if self._catch_up(seq)]
        # CPU time of this thread excludes delays by other processes. Decode steps are measured in the same way.
        started = time.thread_time()
        while active:
            # The first pass of a draft has the sequence's newest token, and possibly the token before it.
            tokens = [self._missing(wanted[index][0], drafts[index]) for index in active]
            logits = self._runner.decode([token for each in tokens for token in each])
            last_rows = [number - 1 for number in accumulate(map(len, tokens))]
            places = [(wanted[index][0], len(drafts[index])) for index in active]
            chosen = self._sampled(logits[last_rows], places)
            for index, token_id in zip(active, chosen, strict=True):
                drafts[index].append(token_id)
            active = [index for index in active if self._goes_on(drafts[index], wanted[index][1])]
        if num_tokens := max(map(len, drafts), default=0):
            seconds = (time.thread_time() - started) / num_tokens
            weight = _TIME_WEIGHT if self.seconds_per_token else 1.0
            self.seconds_per_token += weight * (seconds - self.seconds_per_token)
        return drafts

    def _goes_on(self, draft: list[int], count: int) -> bool:
        """Return True if a draft needs a further token. Removes a token that is not in the main model's vocabulary."""
        if draft[-1] >= self._vocab_size:
            draft.pop()
            return False
        return len(draft) < count

    def _catch_up(self, seq: Sequence) -> bool:
        """Compute uncached tokens of the sequence, except the last few. Returns False if too few blocks are free."""
        cached = self._cached.get(seq)
        if cached is None:
            if not self._free:
                return False
            cached = self._cached[seq] = _Cached(self._free.pop())
        tokens, end = cached.token_ids, max(0, len(seq.token_ids) - _LAST_TOKENS)
        place = cached.num_checked
        while place < min(len(tokens), len(seq.token_ids) - 1) and tokens[place] == seq.token_ids[place]:
            place += 1
        del tokens[place:]
        for start in range(place, end, _CHUNK_TOKENS):
            piece = seq.token_ids[start : min(end, start + _CHUNK_TOKENS)]
            self._runner.prefill([PromptPiece(cached.block_ids, start, piece, wants_logits=True)])
            tokens += piece
        cached.num_checked = len(tokens)
        return True

    def _missing(self, seq: Sequence, draft: list[int]) -> list[NextToken]:
        """Return the tokens of sequence and draft that are not cached, and count them as cached."""
        cached = self._cached[seq]
        first = len(cached.token_ids)
        tokens = seq.token_ids[first:] + draft[max(0, first - len(seq.token_ids)) :]
        cached.token_ids += tokens
        return [NextToken(cached.block_ids, first + number, token_id) for number, token_id in enumerate(tokens)]

    @staticmethod
    def _sampled(logits: Tensor, places: list[tuple[Sequence, int]]) -> list[int]:
        """Sample a token for each row. `places`: each row's sequence and its number of draft tokens so far."""
        rows = [Row(seq.request.sampling, len(seq.token_ids) + ahead) for seq, ahead in places]
        return [each.token_id for each in sample(logits, rows)]


def num_blocks(max_seqs: int, max_len: int, block_size: int) -> int:
    """Return the number of blocks that a draft model's KV cache needs, without scratch blocks."""
    return max_seqs * -(-max_len // block_size)
