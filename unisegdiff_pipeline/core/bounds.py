"""What the fields of settings files may be, written beside their types: `momentum: Annotated[float, Range(0, 1)]`.

`serialization.from_jsonable` checks these rules and names the key, its value and what is allowed. They hold for what is
read; dataclasses that are made in Python are not checked by them.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`; an open end leaves the bound itself out."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def allows(self, value: object) -> bool:
        """Whether the number lies in the range; NaN does not."""
        assert isinstance(value, (int, float))
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"from {self.low:g}"
        return f"{low} {'to below' if self.high_open else 'to'} {self.high:g}"


@dataclass(frozen=True)
class OneOf:
    """One of a few whole numbers."""

    values: tuple[int, ...]

    def allows(self, value: object) -> bool:
        """Whether the number is one of them."""
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Length:
    """A list or text of `least` to `most` entries."""

    least: int
    most: int

    def allows(self, value: object) -> bool:
        """Whether the number of entries lies in the range."""
        assert isinstance(value, Sized)
        return self.least <= len(value) <= self.most

    def __str__(self) -> str:
        return f"a list of {self.least} to {self.most} values"


@dataclass(frozen=True)
class Undefined:
    """A number that may be undefined: NaN in memory, null in JSON."""

    def allows(self, value: object) -> bool:
        """Whether it is a number or NaN, which its type says already."""
        return True

    def __str__(self) -> str:
        return "a number or null"


MAX_SAMPLES = 10_000  # of a case
Fraction = Annotated[float, Range(0, 1)]
FloatOrNaN = Annotated[float, Undefined()]
Finite = Annotated[float, Range(-3e38, 3e38)]  # as far as single precision reaches
NotNegative = Annotated[float, Range(0, 3e38)]
Count = Annotated[int, Range(0, 2**53)]
VoxelCount = Annotated[int, Range(1, 1_000_000)]  # along one axis
Cosine = Annotated[float, Range(-1.001, 1.001)]
SpacingMm = Annotated[float, Range(1e-6, 1e4)]
LogSignalToNoise = Annotated[float, Range(-50, 50)]
