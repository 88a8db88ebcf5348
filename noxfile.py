#!/usr/bin/env -S uv run
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The make targets as nox sessions, for those who know nox; each in an environment of its own."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, package: bool = True) -> None:
    """Install dependency groups, and the package unless that is not wanted."""
    needed = [requirement for group in groups for requirement in nox.project.dependency_groups(PYPROJECT, group)]
    session.install(*needed)
    if package:
        session.install(".")


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff and cython-lint."""
    install(session, "lint", package=False)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("cython-lint", "--max-line-length", "120", "src")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy --strict, stubtest and pyright, and check the docstrings."""
    install(session, "dev", "types")
    session.run("mypy")
    session.run("python", "tools/types_complete.py")
    session.run("python", "tools/docstrings.py")


@nox.session
def review(session: nox.Session) -> None:
    """Run sp-repo-review, validate-pyproject and zizmor."""
    install(session, "review", package=False)
    session.run("sp-repo-review", ".")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("zizmor", "--offline", ".github")


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run self-test and tests against the installed package."""
    install(session, "test")
    session.run("python", "-m", "fastxent", "selftest")
    session.run("pytest", *(session.posargs or ["tests", "README.md"]))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build and check the wheel, and test it on every Python of this machine."""
    install(session, "wheel", package=False)
    session.run("python", "tools/wheel.py", *session.posargs)


if __name__ == "__main__":
    nox.main()
