"""Check the docstrings of the public API with numpydoc, as imported: it knows the fields of dataclasses only then."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from numpydoc.validate import ERROR_MSGS, validate

import fastxent

MODULES = ("linear", "sklearn", "dask")
PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def public_names() -> Iterator[str]:
    """Yield the functions, the losses and the losses' own calls, by the names users write."""
    for name in fastxent.__all__:
        thing = getattr(fastxent, name)
        if not callable(thing):
            continue
        yield f"fastxent.{name}"
        if inspect.isclass(thing):
            yield from (f"fastxent.{name}.{m}" for m in ("__call__", "value_and_grad", "value_grad_hess"))
    for module in MODULES:
        yield from (f"fastxent.{module}.{name}" for name in import_module(f"fastxent.{module}").__all__)


def main() -> None:
    """Print what is wrong, and end with 1 if anything is."""
    checks = tomllib.loads(PYPROJECT.read_text())["tool"]["numpydoc_validation"]["checks"]
    wanted = set(ERROR_MSGS) ^ (set(checks) - {"all"}) if "all" in checks else set(checks)
    names, faults = list(public_names()), 0
    for name in names:
        for code, message in validate(name)["errors"]:
            if code in wanted:
                print(f"{name}: {code} {message}")
                faults += 1
    print(f"{len(names)} docstrings, {len(wanted)} checks, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
