"""Estimates how much longer a decode step takes with more rows, from the durations of earlier steps.

A few rows share one read of the weights, so each additional row costs little. With more rows, each one costs more. The
ratio depends on the model, the precision, the processor, the number of threads and the lengths of the sequences.
"""

# The largest number of rows whose ratio is kept.
MAX_ROWS = 24
# Initial guess: the ratio grows by this number with each row. Measured steps replace the guess.
_FIRST_GUESS = 0.25
_BASE_WEIGHT = 0.3  # weight of the newest step in the time of a step of one row
_RATIO_WEIGHT = 0.1  # weight of the newest step in the ratio for its number of rows
_FIRST_WEIGHT = 0.5  # weight of the first measured step in the ratio for its number of rows
_LARGEST_CHANGE = 2.0  # a step delayed by another process changes an estimate by at most this factor


class StepCosts:
    """Times of decode steps by number of rows, relative to a step of one row."""

    __slots__ = ("_base", "_is_known", "_is_warm", "_ratios")

    def __init__(self) -> None:
        """Start with guessed ratios and no times."""
        self._base = 0.0  # seconds of a step of one row
        self._ratios = [0.0, *(1.0 + _FIRST_GUESS * row for row in range(MAX_ROWS))]
        self._is_known = [False] * len(self._ratios)
        self._is_warm = [False] * len(self._ratios)

    @property
    def base_seconds(self) -> float:
        """Estimated seconds of a step of one row; 0 before the first step."""
        return self._base

    def add(self, num_rows: int, seconds: float) -> None:
        """Record the duration of a decode step. The first step with each number of rows is not counted."""
        if num_rows > MAX_ROWS:
            return
        if not self._is_warm[num_rows]:  # a first step may compile kernels or allocate buffers
            self._is_warm[num_rows] = True
            return
        ratio = self._ratios[num_rows]
        if not self._base:
            self._base = seconds / ratio
            return
        seen = min(max(seconds / self._base, ratio / _LARGEST_CHANGE), ratio * _LARGEST_CHANGE)
        if num_rows == 1 or self._is_known[num_rows]:
            self._base += _BASE_WEIGHT * self._base * (seen / ratio - 1.0)
        if num_rows > 1:
            weight = _RATIO_WEIGHT if self._is_known[num_rows] else _FIRST_WEIGHT
            # A step does not get faster with more rows. With a ratio below 1, estimates for larger numbers could fall
            # to 0.
            self._ratios[num_rows] = max(1.0, ratio + weight * (seen - ratio))
            self._is_known[num_rows] = True
            self._fill(num_rows)

    def ratio(self, num_rows: int) -> float:
        """Return the time of a step of `num_rows` rows, at most MAX_ROWS, relative to a step of one row."""
        return self._ratios[num_rows]

    def _fill(self, changed: int) -> None:
        """Interpolate or extrapolate the ratios of the unmeasured row counts next to `changed`."""
        before, after = changed - 1, changed + 1
        while before > 1 and not self._is_known[before]:
            before -= 1
        while after <= MAX_ROWS and not self._is_known[after]:
            after += 1
        ratios, at = self._ratios, self._ratios[changed]
        for row in range(before + 1, changed):
            ratios[row] = ratios[before] + (at - ratios[before]) * (row - before) / (changed - before)
        slope = (at - 1.0) / (changed - 1)
        if after <= MAX_ROWS:
            slope = (ratios[after] - at) / (after - changed)
        for row in range(changed + 1, min(after, MAX_ROWS + 1)):
            ratios[row] = at + slope * (row - changed)
