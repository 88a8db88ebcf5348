"""Train on more data than a worker may hold: a linear model on a cluster of two processes, by SciPy's L-BFGS.

The cluster makes 480 MB of features and stores them, a file per block of rows; a worker may take 300 MB. Every step of
L-BFGS goes through all files once: the coefficients go to the workers, and one gradient per eight blocks comes back.

Run it with ``python examples/cluster.py``; on machines of your own, replace ``LocalCluster`` by the address of a
scheduler, and the temporary folder by one that all of them see.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster
from scipy.optimize import OptimizeResult, minimize

import fastxent as fx
from fastxent.dask import linear_value_and_grad

N_FEATURES, N_CLASSES, ROWS_PER_BLOCK = 100, 10, 25_000
MEGABYTE = 1e6


def make_data(folder: str, n_samples: int) -> tuple[da.Array, da.Array]:
    """Store features in ``folder``, a file per block, and return them with class labels drawn from a linear model."""
    rng = da.random.default_rng(0)
    shape, chunks = (n_samples, N_FEATURES), (ROWS_PER_BLOCK, N_FEATURES)
    da.to_npy_stack(folder, rng.standard_normal(shape, dtype=np.float32, chunks=chunks))
    features = da.from_npy_stack(folder)
    true_coef = np.random.default_rng(1).standard_normal((N_CLASSES, N_FEATURES)) / np.sqrt(N_FEATURES)
    noise = rng.gumbel(size=(n_samples, N_CLASSES), chunks=(ROWS_PER_BLOCK, N_CLASSES))
    return features, (features @ (2 * true_coef.T).astype(np.float32) + noise).argmax(axis=1).persist()


def train(features: da.Array, target: da.Array, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit coefficients and intercept."""
    loss = fx.CrossEntropy()

    def unpacked(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = weights.reshape(N_CLASSES, N_FEATURES + 1)
        return weights[:, :-1], weights[:, -1]

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        lazy = linear_value_and_grad(loss, features, target, *unpacked(weights))
        value, grad_coef, grad_intercept = dask.compute(*lazy)  # all three at once: one pass over the data
        return float(value), np.column_stack([grad_coef, grad_intercept]).ravel()

    def after_step(intermediate_result: OptimizeResult) -> None:
        print(f"loss {intermediate_result.fun:.6f}", flush=True)

    start = np.zeros(N_CLASSES * (N_FEATURES + 1))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=after_step, options={"maxiter": n_steps})
    return unpacked(found.x)


def peak_memory() -> float:
    """Return the most memory that this process ever had resident, in bytes, files it looked at included."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * float(lines["VmHWM"].split()[0])


def main() -> int | str:
    """Train and show that it fits; the exit status is 1 if it does not."""
    parser = argparse.ArgumentParser(description="Train on more data than a worker may hold.")
    parser.add_argument("--samples", type=int, default=1_200_000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--memory", type=float, default=300, help="of a worker, in MB")
    args = parser.parse_args()
    limit = args.memory * MEGABYTE
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=int(limit), dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        features, target = make_data(folder, args.samples)
        print(f"{features.nbytes / MEGABYTE:.0f} MB of features in {features.npartitions} blocks of rows")
        coef, intercept = train(features, target, args.steps)
        accuracy = float(((features @ coef.T.astype(np.float32) + intercept).argmax(axis=1) == target).mean().compute())
        peaks = list(client.run(peak_memory).values())
    print(f"accuracy {accuracy:.4f}")
    print(f"peak memory of the workers, limit {args.memory:.0f} MB:", *(f"{peak / MEGABYTE:.0f} MB" for peak in peaks))
    return 0 if max(peaks) < limit < features.nbytes else "error: a worker took more than its limit"


if __name__ == "__main__":
    sys.exit(main())
