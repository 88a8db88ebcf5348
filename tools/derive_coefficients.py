"""Derive the polynomials of ``src/fastxent/cpu/kernels/elementary.h`` (needs mpmath).

Each function is written as leading terms, which rounding hardly touches, and a small remainder times a polynomial. That
is interpolated in 60 digits at the Chebyshev nodes (within a few per cent of the best polynomial; Trefethen,
Approximation Theory and Practice, chapter 4). The coefficients are rounded to the dtype, highest power first, and the
largest relative error of the function with the rounded ones is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

mpmath.mp.dps = 60


@dataclass
class Function:
    """f(x) on [low, high] as a polynomial in x: ``polynomial``, whose error weighs ``weight`` relative to the function."""

    name: str
    low: mpmath.mpf
    high: mpmath.mpf
    polynomial: Callable[[mpmath.mpf], mpmath.mpf]
    weight: Callable[[mpmath.mpf], mpmath.mpf]
    degrees: dict[type[np.floating[Any]], int]


def exp_quotient(r: mpmath.mpf) -> mpmath.mpf:
    """q(r) in exp(r) = 1 + r + r^2 q(r)."""
    return (mpmath.exp(r) - 1 - r) / r**2 if abs(r) > 1e-15 else mpmath.mpf(1) / 2 + r / 6


def log1p_quotient(e: mpmath.mpf) -> mpmath.mpf:
    """q(e) in log1p(e) = e + e^2 q(e)."""
    return (mpmath.log1p(e) - e) / e**2 if e > 1e-15 else -mpmath.mpf(1) / 2 + e / 3


def atanh_quotient(z: mpmath.mpf) -> mpmath.mpf:
    """q(z) in log1p(e) = 2 atanh(s / 2) = s (1 + z q(z)), s = 2 e / (2 + e), z = s^2."""
    half = mpmath.sqrt(z) / 2
    return (mpmath.atanh(half) / half - 1) / z if z > 1e-15 else mpmath.mpf(1) / 12 + z / 80


FUNCTIONS = [
    Function(
        "exp(r), |r| <= ln(2) / 2",
        -mpmath.log(2) / 2,
        mpmath.log(2) / 2,
        exp_quotient,
        lambda r: r**2 / mpmath.exp(r),
        {np.float32: 4, np.float64: 9},
    ),
    Function(
        "log1p(e), 0 <= e <= 1",
        mpmath.mpf(0),
        mpmath.mpf(1),
        log1p_quotient,
        lambda e: e / (1 + e * log1p_quotient(e)),
        {np.float32: 8},
    ),
    Function(
        "log1p(e) as 2 atanh(s / 2), 0 <= e <= 1",
        mpmath.mpf(0),
        mpmath.mpf(4) / 9,
        atanh_quotient,
        lambda z: z / (1 + z * atanh_quotient(z)),
        {np.float64: 9},
    ),
]


def interpolate(function: Function, degree: int) -> list[mpmath.mpf]:
    """Coefficients of the polynomial of this degree, highest power first."""
    n = degree + 1
    middle, half = (function.low + function.high) / 2, (function.high - function.low) / 2
    nodes = [middle + half * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    vandermonde = mpmath.matrix([[x ** (degree - power) for power in range(n)] for x in nodes])
    return list(mpmath.lu_solve(vandermonde, mpmath.matrix([function.polynomial(x) for x in nodes])))


def largest_relative_error(function: Function, coefficients: list[float]) -> float:
    """Of the function with these coefficients."""
    grid = [function.low + (function.high - function.low) * mpmath.mpf(i) / 2000 for i in range(2001)]
    exact = [mpmath.mpf(c) for c in coefficients]
    return float(max(abs(function.weight(x) * (mpmath.polyval(exact, x) - function.polynomial(x))) for x in grid))


def main() -> None:
    """Print the coefficients for both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--more", type=int, default=0, help="add this to the degrees")
    more = parser.parse_args().more
    for function in FUNCTIONS:
        for dtype, degree in function.degrees.items():
            rounded = [float(dtype(float(c))) for c in interpolate(function, degree + more)]
            worst = largest_relative_error(function, rounded)
            in_eps = worst / np.finfo(dtype).eps
            print(f"{function.name}, {dtype.__name__}: degree {degree + more}, error {worst:.2e} = {in_eps:.3f} eps")
            for c in rounded:
                print(f"    {c.hex()}  {c!r}")


if __name__ == "__main__":
    main()
