"""Int8 products for the kernels' tests, and what they should be in float32."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Product:
    """Activations and int8 weights of a product.

    Attributes:
        x: (num_rows, num_inputs) 16-bit.
        codes: (num_outputs, num_inputs) int8.
        scales: (num_outputs,) float32.
        bias: (num_outputs,) in x's dtype, or None.
    """

    x: Tensor
    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def expected(self) -> Tensor:
        """Return the product in float32, (num_rows, num_outputs)."""
        weights = self.codes.float() * self.scales[:, None]
        return torch.nn.functional.linear(self.x.float(), weights, None if self.bias is None else self.bias.float())


def random_product(
    num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype = torch.float16, *, has_bias: bool = False
) -> Product:
    """Return a product of random numbers. The weights have the scale of a model's, and the results are about 1."""
    generator = torch.Generator().manual_seed(num_rows + num_outputs + num_inputs)
    codes = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8, generator=generator)
    scales = (0.5 + torch.rand(num_outputs, generator=generator)) / (64 * num_inputs**0.5)
    x = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
    bias = torch.randn(num_outputs, generator=generator).to(dtype) if has_bias else None
    return Product(x, codes, scales, bias)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error as a share of the largest expected number."""
    return float((actual.float() - expected).abs().max() / expected.abs().max())


def rounding(dtype: torch.dtype) -> float:
    """Return the largest relative error of rounding to `dtype`, with a little room for the order of float32 sums."""
    return torch.finfo(dtype).eps / 2 + 1e-5
