"""The forms of weights from which a backend packs a linear layer."""

from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4, Int4Pairs, Int8
from inference_server.cpu.linear.stored_linear import StoredRows

Weights = Tensor | Int8 | Int4 | Int4Pairs | StoredRows
