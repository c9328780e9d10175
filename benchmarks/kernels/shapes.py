"""Lists the linear layers of the default model and of two larger ones, with their numbers of outputs and inputs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """A kind of linear layer that a forward pass computes `count` times, each time with different weights."""

    name: str
    outputs: int
    inputs: int
    count: int


@dataclass(frozen=True, slots=True)
class Model:
    """The products of a forward pass, or of some of its decoder layers."""

    name: str
    title: str
    layers: tuple[Layer, ...]

    def weights(self) -> int:
        """Return the number of weights that a pass reads."""
        return sum(layer.outputs * layer.inputs * layer.count for layer in self.layers)

    def in_order(self) -> list[Layer]:
        """Return the layers in the order of a forward pass. Each is repeated once for each computation."""
        depth = max(layer.count for layer in self.layers)
        return [layer for number in range(depth) for layer in self.layers if number >= depth - layer.count]


def _decoder(hidden: int, key_value: int, intermediate: int, count: int) -> tuple[Layer, ...]:
    """Return the layers of `count` decoder layers. `key_value`: number of outputs of keys; values have as many."""
    return (
        Layer("query, key, value", hidden + 2 * key_value, hidden, count),
        Layer("output", hidden, hidden, count),
        Layer("gate, up", 2 * intermediate, hidden, count),
        Layer("down", hidden, intermediate, count),
    )


# The larger models have 32 decoder layers. Four are enough to measure, because no cache holds them.
MODELS = {
    model.name: model
    for model in (
        Model(
            "smollm2-135m", "SmolLM2-135M, whole pass", (*_decoder(576, 192, 1536, 30), Layer("head", 49152, 576, 1))
        ),
        Model("llama-2-7b", "Llama-2-7B, 4 layers", _decoder(4096, 4096, 11008, 4)),
        Model("llama-3.1-8b", "Llama-3.1-8B, 4 layers", _decoder(4096, 1024, 14336, 4)),
    )
}
