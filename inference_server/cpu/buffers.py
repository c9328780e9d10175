"""The tensors at fixed addresses that the kernels of a kernel program read and write."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.cpu.adapters import CpuAdapters
from inference_server.cpu.decoder_weights import DecoderWeights
from inference_server.kernels.jit import arguments


@dataclass(frozen=True, slots=True)
class Buffers:
    """Tensors at fixed addresses that the kernels read and write. The first twelve have the shape (num_rows, …)."""

    hidden: Tensor  # the residual stream
    normed: Tensor
    delta: Tensor  # the output of attention or MLP, to be added to hidden
    cos: Tensor
    sin: Tensor
    ones: Tensor  # the cosines of layers without rotary embedding
    zeros: Tensor  # their sines
    qkv: Tensor
    query: Tensor
    attended: Tensor
    product: Tensor
    rows: Tensor  # int64, the tokens' rows of the KV cache
    table: Tensor  # (decoded sequences, blocks of the longest sequence) int32, the block tables
    lengths: Tensor  # (decoded sequences,) int32
    logits: Tensor  # (decoded sequences, padded vocabulary) float32
    segments: Tensor  # int64, the table of prompt segments, at most one for each row
    workspace: Tensor  # int8, for the linear layers
    adapters: Tensor  # (num_rows,) int32, the adapter of each row, from 1; 0 for none
    scratch: Tensor  # (num_rows, …) float32, for the adapters
    gate_up: Tensor  # (num_rows, …), the outputs of gate and up before the gate, if an adapter adapts them


def allocate(
    decoder: DecoderWeights, adapters: CpuAdapters | None, num_rows: int, num_seqs: int, num_blocks: int
) -> Buffers:
    """Return buffers filled with zeros, except `ones`.

    Args:
        decoder: The weights, which determine the widths.
        adapters: The LoRA adapters, if the model has any.
        num_rows: Largest number of tokens of a forward pass.
        num_seqs: Largest number of decoded sequences of a forward pass.
        num_blocks: Number of blocks of the longest sequence.
    """
    layer, hidden_size = decoder.layers[0], decoder.embedding.shape[1]

    def zeros(*shape: int, dtype: torch.dtype = decoder.dtype) -> Tensor:
        return torch.zeros(num_rows, *shape, dtype=dtype)

    return Buffers(
        hidden=zeros(hidden_size),
        normed=zeros(hidden_size),
        delta=zeros(hidden_size),
        cos=zeros(decoder.head_dim),
        sin=zeros(decoder.head_dim),
        ones=zeros(decoder.head_dim) + 1.0,
        zeros=zeros(decoder.head_dim),
        qkv=zeros(layer.qkv.out_features),
        query=zeros(decoder.num_heads, decoder.head_dim),
        attended=zeros(decoder.num_heads, decoder.head_dim),
        product=zeros(max((each.down.in_features for each in decoder.layers if each.down), default=0)),
        rows=zeros(dtype=torch.int64),
        table=torch.zeros(num_seqs, num_blocks, dtype=torch.int32),
        lengths=torch.zeros(num_seqs, dtype=torch.int32),
        logits=torch.zeros(num_seqs, decoder.head.padded_features),
        segments=torch.zeros(arguments.segment_words(num_rows), dtype=torch.int64),
        workspace=torch.zeros(max(each.workspace_bytes(num_rows) for each in decoder.linears) + 64, dtype=torch.int8),
        adapters=zeros(dtype=torch.int32),
        scratch=zeros(adapters.scratch_width if adapters else 0, dtype=torch.float32),
        gate_up=zeros(adapters.gated_width if adapters else 0),
    )
