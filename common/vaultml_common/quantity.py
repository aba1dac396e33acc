"""Kubernetes quantities."""

import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+)|([KMGTPE]i|[numkMGTPE]))?")
_SUFFIXES = {
    **{
        suffix: Fraction(10) ** power
        for suffix, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)
    },
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def quantity(value: str | float) -> int:
    """Return a Kubernetes quantity ("4", "1k", "2e3", "1Ki") as a whole number, rounded down.

    Raises ValueError when it is none.
    """
    number = exact(value)
    return number.numerator // number.denominator


def exact(value: str | float) -> Fraction:
    """Return a Kubernetes quantity ("100m" is 1/10) exactly. Raises ValueError when it is none."""
    if (found := _QUANTITY.fullmatch(str(value).strip())) is None:
        raise ValueError(f"{value!r} is no Kubernetes quantity")
    number, exponent, suffix = found.groups()
    return Fraction(number) * (Fraction(10) ** int(exponent) if exponent else _SUFFIXES.get(suffix, Fraction(1)))
