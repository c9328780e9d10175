"""Counts the parameters of a model that a precision quantises, and names the layers that are not quantised."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from inference_server.linears.experts import is_stack, weight_names
from inference_server.linears.plain import GROUP, as_linear, is_linear

# A class of layers with fewer parameters than this share of the model is not named.
_SMALLEST_NAMED = 0.01
# Weight formats of the precisions that quantise.
WEIGHT_FORMATS = {"bitsandbytes-int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class QuantisedShare:
    """The part of a model's parameters that is quantised.

    Attributes:
        weight_format: "int8" or "int4".
        quantised: The number of quantised parameters.
        total: The number of all parameters.
        embeddings: The number of parameters of embeddings, and of an output head that is not quantised.
        left_out: The classes of other layers with matrices that are not quantised, with their numbers of parameters,
            largest first. Classes with few parameters are omitted.
    """

    weight_format: str
    quantised: int
    total: int
    embeddings: int = 0
    left_out: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        """Return a phrase for the log and the report."""
        percent = 100 * self.quantised / max(1, self.total)
        text = f"{_number(self.quantised)} of {_number(self.total)} parameters in {self.weight_format} ({percent:.0f}%)"
        return f"{text}, {_number(self.embeddings)} in embeddings" if self.embeddings else text

    @property
    def warning(self) -> str:
        """Return a clause about layers that stay unquantised, or "" if there are none."""
        if not self.left_out:
            return ""
        names = ", ".join(f"{name} ({_number(count)} parameters)" for name, count in self.left_out)
        return f"these layers are not quantised, because they have no {self.weight_format} form: {names}"


def quantised_share(model: Any, precision: str, *, head_is_quantised: bool = True) -> QuantisedShare | None:
    """Return the part of a transformers model that a precision quantises; None if it quantises nothing.

    Args:
        model: The model as transformers loads it, or on the device meta.
        precision: The precision in use on the device.
        head_is_quantised: False if the output head stays in 16 bits, as on a GPU.
    """
    if precision not in WEIGHT_FORMATS:
        return None
    head = model.get_output_embeddings()
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        names = _quantised_names(module, precision) if module is not head or head_is_quantised else []
        for name, parameter in module.named_parameters(recurse=False):
            # A shared parameter counts once, except that quantising a tied output head creates a copy of the embedding.
            if id(parameter) in seen and name not in names:
                continue
            seen.add(id(parameter))
            counts["total"] += parameter.numel()
            if name in names:
                counts["quantised"] += parameter.numel()
            elif isinstance(module, nn.Embedding) or module is head:
                counts["embeddings"] += parameter.numel()
            elif parameter.dim() >= 2:
                left_out[type(module).__name__] += parameter.numel()
    total = counts["total"]
    named = tuple((name, count) for name, count in left_out.most_common() if count >= _SMALLEST_NAMED * total)
    return QuantisedShare(WEIGHT_FORMATS[precision], counts["quantised"], total, counts["embeddings"], named)


def _quantised_names(module: Any, precision: str) -> list[str]:
    """Return the names of a module's parameters that the precision quantises."""
    if is_stack(module):
        return weight_names(module)
    is_wide = precision != "int4" or not is_linear(module) or as_linear(module).weight.shape[1] % GROUP == 0
    return ["weight"] if is_linear(module) and is_wide else []


def _number(count: int) -> str:
    """Return a number of parameters, such as "1.23M"."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)
