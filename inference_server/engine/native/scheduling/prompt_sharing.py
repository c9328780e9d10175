"""Computes a common beginning of several prompts only once, even if the prompts arrive together.

A running sequence claims the blocks that its prompt will fill, unless another running sequence has claimed them. A sequence
whose next block has another owner waits until that block is in the prefix cache, and takes it from there. If the owner is
cancelled, fails or is preempted, its claims end, and the waiting sequence claims the block itself. Sequences never wait
for each other in a cycle, because the owner of the first missing block of a prompt can always continue.
"""

from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.engine.prefix_keys import PrefixKey
from inference_server.engine.sequence import Sequence


class PromptSharing:
    """The prefix cache of the scheduler, with the claims of the prompts that are being computed."""

    def __init__(self, pool: BlockPool, policy: Policy) -> None:
        """Start without claims. `pool`: the scheduler's blocks, with the prefix cache."""
        self._pool = pool
        # Batch-invariant chunks must begin at the same positions as without the cache, so only whole chunks are reused.
        size = pool.block_size
        self._blocks_at_once = policy.chunk_size(size) // size if policy.batch_invariant else 1
        self._owners: dict[PrefixKey, Sequence] = {}
        self._claimed: dict[Sequence, list[PrefixKey]] = {}

    def cached(self, seq: Sequence) -> list[int]:
        """Return the blocks in the prefix cache that a sequence can reuse for its first tokens."""
        found = self._pool.match(self._usable_keys(seq))
        return found[: len(found) // self._blocks_at_once * self._blocks_at_once]

    def start(self, seq: Sequence) -> None:
        """Claim the blocks that an admitted sequence is going to fill."""
        if self._pool.has_prefix_cache:
            size = self._pool.block_size
            keys = seq.block_keys.get(seq.token_ids, len(seq.token_ids) // size)
            self._claim(seq, keys[seq.num_computed // size :])

    def take(self, seq: Sequence) -> int:
        """Replace a sequence's next blocks with blocks that other sequences computed.

        Returns the number of their tokens.
        """
        size = self._pool.block_size
        first = seq.num_computed // size
        if seq.num_computed % size or not self._pool.has_prefix_cache:
            return 0
        found = self._pool.match(self._usable_keys(seq)[first:])
        last = (first + len(found)) // self._blocks_at_once * self._blocks_at_once
        if last <= first:
            return 0
        shared = found[: last - first]
        self._pool.share(shared)
        self._pool.release(seq.block_ids[first:last])
        seq.block_ids[first:last] = shared
        seq.num_computed = last * size
        return (last - first) * size

    def may_go_on(self, seq: Sequence) -> bool:
        """Return False if a sequence must wait because another running sequence is going to compute its next block.

        An interactive request never waits for a batch request, which may pause, but claims the block itself.
        """
        size = self._pool.block_size
        if seq.num_computed % size or not self._pool.has_prefix_cache:
            return True
        keys = self._usable_keys(seq)[seq.num_computed // size :]
        if not keys:
            return True
        owner = self._owners.get(keys[0])
        if owner is None or _goes_before(seq, owner):
            self._claim(seq, keys)
            return True
        # If the owner has computed the block but the prefix cache lacks it, the block was unregistered because another
        # sequence that shared it failed. This sequence must then compute it.
        return owner is seq or owner.num_computed >= seq.num_computed + size

    def end(self, seq: Sequence) -> None:
        """Remove a sequence's claims, because its prompt is complete or it no longer runs."""
        for key in self._claimed.pop(seq, ()):
            if self._owners.get(key) is seq:
                del self._owners[key]

    def _claim(self, seq: Sequence, keys: list[PrefixKey]) -> None:
        claimed = self._claimed.setdefault(seq, [])
        for key in keys:
            owner = self._owners.get(key)
            if owner is None or _goes_before(seq, owner):
                self._owners[key] = seq
                claimed.append(key)

    def _usable_keys(self, seq: Sequence) -> list[PrefixKey]:
        """Return the keys of the blocks that a sequence can share.

        Its last token is always computed, for the logits.
        """
        return seq.block_keys.get(seq.token_ids, (len(seq.token_ids) - 1) // self._pool.block_size)


def _goes_before(seq: Sequence, other: Sequence) -> bool:
    return other.request.is_batch and not seq.request.is_batch
