"""The token embedding in the number format of a file. A forward pass decodes only the rows of its tokens."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor, nn

from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.linears.plain import GROUP


class StoredEmbedding(nn.Module):
    """An embedding whose rows stay in a file's number format, which takes much less memory than float32.

    Attributes:
        rows: The file's bytes, (vocab_size, row_bytes) uint8.
        shape: (vocab_size, hidden_size).
        dtype: The dtype of decoded rows, float32 or bfloat16.
    """

    def __init__(self, rows: Tensor, function: Kernel, hidden_size: int, dtype: torch.dtype) -> None:
        """Keep the file's bytes. `function`: the result of `rows_kernel` for their format and `dtype`."""
        super().__init__()
        self.rows, self.dtype, self.shape = rows, dtype, torch.Size((len(rows), hidden_size))
        self._function = function

    @property
    def num_bytes(self) -> int:
        """Return the memory of the rows, in bytes."""
        return self.rows.nbytes

    @property
    def nbytes(self) -> int:
        """Return the memory of the rows, in bytes, under the name that tensors use."""
        return self.rows.nbytes

    def numel(self) -> int:
        """Return the number of weights."""
        return self.shape.numel()

    def write(self, token_ids: Items[int], out: Tensor) -> None:
        """Decode the rows of tokens.

        Args:
            token_ids: The tokens, at least one.
            out: (num_tokens, hidden_size) of `dtype`, contiguous, overwritten.

        Raises:
            IndexError: A token is not in the vocabulary.
        """
        if min(token_ids) < 0 or max(token_ids) >= len(self.rows):
            raise IndexError(f"a token is not below {len(self.rows)}, the size of the vocabulary")
        start, row_bytes = self.rows.data_ptr(), self.rows.shape[1]
        addresses = torch.tensor([start + token_id * row_bytes for token_id in token_ids])
        block = arguments.stored(addresses, out, None, len(token_ids), self.shape[1] // GROUP)
        self._function.run(block, len(token_ids), out.numel() // 4)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the rows of tokens, (…, hidden_size), for token ids of the shape (…)."""
        out = torch.empty(*token_ids.shape, self.shape[1], dtype=self.dtype)
        if token_ids.numel():
            self.write(token_ids.flatten().tolist(), out)
        return out

    def plain(self) -> Tensor:
        """Return all rows, (vocab_size, hidden_size) of `dtype`."""
        return self.forward(torch.arange(len(self.rows)))


def rows_kernel(format_name: str, hidden_size: int, dtype: torch.dtype) -> Kernel | None:
    """Return the kernel that decodes rows, or None if there is none for this format, width and dtype.

    Args:
        format_name: The name of a number format in lower case, for example "q8_0".
        hidden_size: Number of weights of a row.
        dtype: The dtype of decoded rows.
    """
    is_readable = format_name in arguments.STORED_FORMATS and hidden_size % GROUP == 0
    if not is_readable or dtype not in (torch.float32, torch.bfloat16):
        return None
    return kernel(f"{format_name}-rows", dtype is torch.bfloat16)


Embedding = Tensor | StoredEmbedding  # (vocab_size, hidden_size)


def write_embeddings(embedding: Embedding, token_ids: list[int], out: Tensor) -> None:
    """Write the rows of tokens. The arguments are those of `StoredEmbedding.write`."""
    if isinstance(embedding, Tensor):
        torch.index_select(embedding, 0, torch.tensor(token_ids), out=out)
    else:
        embedding.write(token_ids, out)
