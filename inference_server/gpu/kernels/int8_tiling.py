"""The division of an int8 product among programs and warps. Imports neither torch nor Triton."""

from dataclasses import dataclass

_MAX_SPLITS = 8
# Up to this number of outputs, the grid would have few programs. For up to 16 rows, each program therefore computes fewer
# outputs. For up to 8 rows, it also copies more tiles ahead.
_FEW_OUTPUTS = 9216


@dataclass(frozen=True, slots=True)
class Tiling:
    """The part of the product that a program computes, and its division among warps and steps.

    Attributes:
        rows: Number of rows of activations, padded.
        outputs: Number of outputs.
        slices: Number of parts into which a tile's inputs are divided: one for each warp, or 1 if all warps share them.
        inputs: Number of inputs of a slice in one step of the loop.
        num_warps: Number of warps.
        num_stages: Number of steps that overlap; num_stages - 1 tiles are in shared memory.
    """

    rows: int
    outputs: int
    slices: int
    inputs: int
    num_warps: int
    num_stages: int

    @property
    def step(self) -> int:
        """Number of inputs of one step of the loop."""
        return self.slices * self.inputs

    def constants(self) -> dict[str, int]:
        """Return the kernel's constants for this tiling."""
        return {
            "ROWS": self.rows,
            "OUTPUTS": self.outputs,
            "SLICES": self.slices,
            "INPUTS": self.inputs,
            "STAGES": self.num_stages,
        }


# Tilings for few and for many outputs, by the padded number of rows. With 64 rows, the sums of four slices would not fit
# in registers.
_FEW = {
    8: Tiling(8, 16, slices=4, inputs=128, num_warps=4, num_stages=5),
    16: Tiling(16, 32, slices=4, inputs=64, num_warps=4, num_stages=5),
    32: Tiling(32, 64, slices=4, inputs=64, num_warps=4, num_stages=4),
    64: Tiling(64, 128, slices=1, inputs=128, num_warps=8, num_stages=4),
}
_MANY = {
    8: Tiling(8, 32, slices=4, inputs=128, num_warps=4, num_stages=3),
    16: Tiling(16, 64, slices=4, inputs=64, num_warps=4, num_stages=5),
    32: _FEW[32],
    64: _FEW[64],
}
TILINGS = tuple(dict.fromkeys([*_FEW.values(), *_MANY.values()]))
# The other tilings need no splits: with more outputs than _FEW_OUTPUTS, there are enough programs for all
# multiprocessors.
SPLIT_TILINGS = tuple(_FEW.values())


def choose_tiling(num_rows: int, num_outputs: int) -> Tiling:
    """Return the tiling for `num_rows` rows, 1 to 64."""
    tilings = _FEW if num_outputs <= _FEW_OUTPUTS else _MANY
    return next(tiling for rows, tiling in tilings.items() if num_rows <= rows)


def choose_num_splits(tiling: Tiling, num_outputs: int, num_inputs: int, multiprocessors: int) -> int:
    """Return the number of parts into which the inputs are split: 1, 2, 4 or 8.

    This is the smallest number with which at least nine of ten multiprocessors run a program. It is smaller if a
    program would otherwise have fewer than two steps.
    """
    programs = -(-num_outputs // tiling.outputs)
    steps = -(-num_inputs // tiling.step)
    splits = 1
    while splits < _MAX_SPLITS and programs * splits < 0.9 * multiprocessors and steps >= 4 * splits:
        splits *= 2
    return splits
