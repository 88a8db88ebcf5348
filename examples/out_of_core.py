"""Train a linear classifier on a file that need not fit into memory.

The data are scikit-learn's handwritten digits, each shifted by up to one pixel in every direction and written to a file
as often as the file shall be long. `fastxent.linear` goes through the file block by block; SciPy minimises.

Run it with ``python examples/out_of_core.py``; ``--megabytes`` says how long the file is.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_digits

import fastxent as fx
from fastxent import linear

SHIFTS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def write(path: Path, megabytes: int) -> np.ndarray:
    """Write the features to the file; return the digits."""
    images, digits = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 8, 8).astype(np.float32) / 16
    n_copies = max(megabytes * 2**20 // images.shape[0] // images.shape[1] // 4, 1)
    shape = (n_copies * len(digits), images.shape[1])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for copy in range(n_copies):
            file.write(np.roll(pixels, SHIFTS[copy % len(SHIFTS)], axis=(1, 2)).tobytes())
    return np.tile(digits, n_copies)


def resident_megabytes() -> int:
    """Return the largest amount of memory that this process has had (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main() -> None:
    """Write the file, train, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="the length of the file (%(default)s)")
    args = parser.parse_args()
    loss = fx.CrossEntropy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.npy"
        digits = write(path, args.megabytes)
        X = np.load(path, mmap_mode="r")
        before = resident_megabytes()

        def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = parameters.reshape(10, 65)
            value, grad_coef, grad_intercept = linear.value_and_grad(
                loss, X, digits, parameters[:, :-1], parameters[:, -1]
            )
            return value, np.column_stack([grad_coef, grad_intercept]).ravel()

        found = minimize(objective, np.zeros(650), jac=True, options={"maxiter": 30})
        print(f"{len(X)} rows, {X.nbytes / 2**20:.0f} MB in the file")
        print(f"loss {np.log(10):.3f} before, {found.fun:.3f} after {found.nit} steps")
        print(f"memory: at most {resident_megabytes()} MB, {before} MB of it before training")


if __name__ == "__main__":
    main()
