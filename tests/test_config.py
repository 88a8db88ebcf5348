"""`show_config`, the command line, `FASTXENT_ISA`, and what an import brings along."""

import os
import re
import subprocess
import sys

import pytest

import fastxent as fx
from fastxent import _config

LEVELS = ("avx512", "avx2", "baseline")


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def test_usable_levels_are_known_and_best_first():
    usable = _config.usable_levels()
    assert usable[-1] == "baseline"
    assert list(usable) == [level for level in LEVELS if level in usable]
    assert _config.level() in usable


def test_each_level_can_be_chosen_by_name(isa):
    assert _config.level() == isa


def test_an_unknown_level_is_refused_and_changes_nothing():
    before = _config.level()
    with pytest.raises(ValueError, match=re.escape("baseline")):
        _config.use_level("sse9")
    assert _config.level() == before


def assert_describes_this_installation(text):
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in text.strip().splitlines())
    assert lines["fastxent"] == fx.__version__
    assert lines["level"] == _config.level()
    assert lines["levels available"] == ", ".join(_config.usable_levels())
    assert lines["OpenMP"] in ("yes", "no")
    assert re.fullmatch(r"\d+ \(.+\)", lines["threads"])
    return lines


def test_show_config(capsys):
    fx.set_num_threads(1)
    assert fx.show_config() is None
    lines = assert_describes_this_installation(capsys.readouterr().out)
    assert lines["threads"] in ("1 (set_num_threads(1))", "1 (built without OpenMP)")


def test_info():
    result = run("-m", "fastxent", "info")
    assert result.returncode == 0, result.stderr
    assert_describes_this_installation(result.stdout)


def test_selftest_checks_every_level_in_under_two_seconds():
    result = run("-m", "fastxent", "selftest")
    assert result.returncode == 0, result.stdout + result.stderr
    for level in _config.usable_levels():
        for dtype in ("float32", "float64"):
            assert re.search(rf"^{level} +{dtype} +ok", result.stdout, re.MULTILINE), result.stdout
    assert float(re.search(r"\((\d+\.\d+) s\)", result.stdout).group(1)) < 2


def test_an_unknown_command_is_refused():
    result = run("-m", "fastxent", "frobnicate")
    assert result.returncode == 2
    assert "info" in result.stderr
    assert "selftest" in result.stderr


@pytest.mark.parametrize("level", _config.usable_levels())
def test_the_environment_forces_a_level(level):
    result = run("-c", "from fastxent import _config; print(_config.level())", FASTXENT_ISA=level)
    assert result.stdout.strip() == level, result.stderr


@pytest.mark.parametrize("level", ["sse9", "AVX2", "avx512 "])
def test_an_unusable_level_in_the_environment_is_an_error_that_names_the_usable_ones(level):
    result = run("-c", "import fastxent", FASTXENT_ISA=level)
    assert result.returncode == 1
    usable = ", ".join(repr(name) for name in _config.usable_levels())
    assert result.stderr.strip().endswith(f"ValueError: FASTXENT_ISA must be one of {usable}; got {level!r}")


def test_an_empty_level_in_the_environment_is_none():
    assert run("-c", "import fastxent", FASTXENT_ISA="").returncode == 0


def test_import_brings_nothing_but_numpy():
    heavy = ["scipy", "sklearn", "pandas", "cupy", "torch", "jax", "dask", "joblib", "matplotlib"]
    result = run("-c", f"import sys, fastxent; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr
    result = run(
        "-c",
        "import sys, numpy; before = set(sys.modules); import fastxent; print(*sorted(set(sys.modules) - before))",
    )
    third_party = {m.split(".")[0] for m in result.stdout.split()} - set(sys.stdlib_module_names)
    assert {m for m in third_party if not m.startswith("_cython_")} <= {"fastxent", "numpy", "cython_runtime"}


def test_the_public_names_are_all_there():
    assert set(fx.__all__) >= {
        "CrossEntropy",
        "softmax",
        "log_softmax",
        "logsumexp",
        "balanced_class_weight",
        "set_num_threads",
        "get_num_threads",
        "show_config",
    }
    assert all(hasattr(fx, name) for name in fx.__all__)
