"""Derive the polynomials of ``exp`` in ``src/fastxent/cpu/kernels/elementary.h`` (needs mpmath).

exp(r) = 1 + r + r^2 q(r) on |r| <= ln(2)/2, with q interpolated in 60 digits at the Chebyshev nodes (within a few per
cent of the best polynomial; Trefethen, Approximation Theory and Practice, chapter 4). The coefficients are rounded to
the dtype, highest power first, and the largest relative error of exp with the rounded ones is printed.
"""

from __future__ import annotations

import argparse

import mpmath
import numpy as np

mpmath.mp.dps = 60
HALF_LN2 = mpmath.log(2) / 2


def quotient(r: mpmath.mpf) -> mpmath.mpf:
    """q(r) = (exp(r) - 1 - r) / r^2."""
    return (mpmath.exp(r) - 1 - r) / r**2 if abs(r) > 1e-15 else mpmath.mpf(1) / 2 + r / 6


def interpolate(degree: int) -> list[mpmath.mpf]:
    """Coefficients of q of this degree, highest power first."""
    n = degree + 1
    nodes = [HALF_LN2 * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    vandermonde = mpmath.matrix([[r ** (degree - power) for power in range(n)] for r in nodes])
    return list(mpmath.lu_solve(vandermonde, mpmath.matrix([quotient(r) for r in nodes])))


def largest_relative_error(coefficients: list[float]) -> float:
    """Of 1 + r + r^2 q(r) against exp(r)."""
    grid = [HALF_LN2 * (mpmath.mpf(i) / 1000 - 1) for i in range(2001)]
    exact = [mpmath.mpf(c) for c in coefficients]
    return float(max(abs(r**2 * (mpmath.polyval(exact, r) - quotient(r)) / mpmath.exp(r)) for r in grid))


def main() -> None:
    """Print the coefficients for both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--degree32", type=int, default=4, help="degree of q in float32")
    parser.add_argument("--degree64", type=int, default=9, help="degree of q in float64")
    arguments = parser.parse_args()
    for dtype, degree in ((np.float32, arguments.degree32), (np.float64, arguments.degree64)):
        rounded = [float(dtype(float(c))) for c in interpolate(degree)]
        worst = largest_relative_error(rounded)
        print(
            f"{dtype.__name__}: degree {degree}, largest relative error {worst:.2e} = {worst / np.finfo(dtype).eps:.3f} eps"
        )
        for c in rounded:
            print(f"    {c.hex()}  {c!r}")


if __name__ == "__main__":
    main()
