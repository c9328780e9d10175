"""A runner with a model that needs no device time: its logits depend on all tokens that it finds in a sequence's blocks."""

import torch

from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.model.runner import NextToken, PromptPiece

VOCAB_SIZE = 64
_NUM_ROWS = 997
_TABLE = torch.randn(_NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(5)) * 2.0


class FakeCache:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks + NUM_SCRATCH_BLOCKS
        self.block_size = block_size


class FakeRunner:
    """Stores every token in its block, as a model stores keys and values. A wrong block or position changes the logits.

    Attributes:
        spoil: Called with the tokens and logits of each decode pass; tests change the logits or raise.
        num_on_device: Decoded tokens that came from `sampled`.
    """

    device = torch.device("cpu")
    vocab_size = VOCAB_SIZE
    supports_mixed_batch = False

    def __init__(self, *, num_blocks: int = 200, block_size: int = 4, supports_overlap: bool = True) -> None:
        self.cache = FakeCache(num_blocks, block_size)
        self.supports_overlap = supports_overlap
        self.sampled = torch.zeros(64, dtype=torch.int64)
        self.spoil = lambda tokens, logits: None
        self.num_on_device = 0
        self.num_probes = 0
        self._stored = [[0] * block_size for _ in range(self.cache.num_blocks)]

    def probe(self) -> None:
        self.num_probes += 1

    def prefill(self, pieces: list[PromptPiece]) -> torch.Tensor:
        for piece in pieces:
            for position, token_id in enumerate(piece.token_ids, piece.start):
                self._store(piece.block_ids, position, token_id)
        wanted = [piece for piece in pieces if piece.wants_logits]
        return self._logits([(piece.block_ids, piece.start + len(piece.token_ids)) for piece in wanted])

    def decode(self, tokens: list[NextToken]) -> torch.Tensor:
        sampled = self.sampled.tolist()
        self.num_on_device += sum(token.token_id < 0 for token in tokens)
        for token in tokens:
            token_id = sampled[-token.token_id - 1] if token.token_id < 0 else token.token_id
            self._store(token.block_ids, token.position, token_id)
        logits = self._logits([(token.block_ids, token.position + 1) for token in tokens])
        self.spoil(tokens, logits)
        return logits

    def _store(self, block_ids: list[int], position: int, token_id: int) -> None:
        size = self.cache.block_size
        self._stored[block_ids[position // size]][position % size] = token_id

    def _logits(self, contexts: list[tuple[list[int], int]]) -> torch.Tensor:
        size = self.cache.block_size
        rows = []
        for block_ids, length in contexts:
            tokens = [token for block in block_ids for token in self._stored[block]][:length]
            assert len(tokens) == length <= len(block_ids) * size
            value = 0
            for token in tokens:
                value = (value * 31 + token + 7) % _NUM_ROWS
            rows.append(value)
        return _TABLE[rows]  # a copy
