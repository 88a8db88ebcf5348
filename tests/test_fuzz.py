"""Random calls against the reference, and that the fuzzer finds what it should: a check that cannot fail proves nothing."""

import dataclasses

import fuzzing
import numpy as np
import pytest

from fastxent import _config
from fastxent.cpu import engine, run

CASES = 2_000
# `make fuzz` begins at 0.
FIRST_SEED = 1_000_000
BATCHES = 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_calls(batch):
    size = CASES // BATCHES
    seeds = range(FIRST_SEED + batch * size, FIRST_SEED + (batch + 1) * size)
    failed = [seed for seed in seeds if fuzzing.first_problem(fuzzing.random_case(seed))]
    assert not failed, "\n".join(fuzzing.report(fuzzing.random_case(seed)) for seed in failed[:3])


# Cases of `make fuzz` that once failed, and why.
FAILED_ONCE = {
    16488: "small masses times small exponentials were lost before a large scale",
    43501: "the same, in the second chunk of a long row",
    39756: "the divisor of the mean, one class after the other",
    55778: "the divisor of the mean, one row after the other",
    59791: "the divisor of the mean, one class after the other for neighbouring rows",
    69000: "the divisor of the mean, two lanes of equal targets",
    72352: "balanced counts, one row after the other",
}


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_calls_that_failed_once(seed):
    assert not fuzzing.first_problem(fuzzing.random_case(seed)), FAILED_ONCE[seed]


def test_random_calls_reach_every_regime(monkeypatch):
    reached = set()

    def job(*arguments, **options):
        planned = engine.Job(*arguments, **options)
        plan = planned.plan
        real = arguments[1].dtype
        reached.add((plan["regime"], real.itemsize, plan["level"]))
        reached.add((plan["regime"], plan["stream"]))
        return planned

    monkeypatch.setattr(run.CpuRun, "job", staticmethod(job))
    for seed in range(600):
        fuzzing.first_problem(fuzzing.random_case(seed))
    for level in _config.usable_levels():
        for regime in engine.REGIMES:
            for size in (2, 4, 8):
                if size > 2 or regime != "short_rows":  # halves have no short rows
                    assert (regime, size, level) in reached
    streaming = {key[0] for key in reached if len(key) == 2 and key[1]}
    assert streaming >= {"tile", "short_rows", "rows", "long_rows", "elements"}


def case_of(**fields):
    case = fuzzing.Case(
        seed=3,
        function="CrossEntropy",
        dtype="float32",
        shape=(5, 7),
        axis=-1,
        target="int64",
        options={"reduction": "none"},
        layouts={},
        outputs="given",
    )
    return dataclasses.replace(case, **fields)


class Sloppy:
    """A loss that does what a faulty kernel might."""

    def __init__(self, loss, fault):
        self.loss, self.fault = loss, fault

    def value_grad_hess(self, logits, target, weight, grad_out, hess_out):
        value, grad, hess = self.loss.value_grad_hess(logits, target, weight, grad_out, hess_out)
        self.fault(logits, target, grad, hess)
        return value, grad, hess


def beyond(array, elements):
    """The array and that many elements more."""
    return np.lib.stride_tricks.as_strided(array, (array.size + elements,), (array.itemsize,))


def past_the_end(logits, target, grad, hess):
    beyond(grad, 1)[-1] = 0


def into_an_input(logits, target, grad, hess):
    target[0] += 1


def a_little_off(logits, target, grad, hess):
    hess[-1, -1] *= 1 + 1e-5


def forgotten(logits, target, grad, hess):
    grad[2, 3] = 7


@pytest.mark.parametrize("fault", [past_the_end, into_an_input, a_little_off, forgotten])
def test_faults_are_found(monkeypatch, fault):
    case = case_of()
    assert not fuzzing.first_problem(case)
    made = fuzzing.made

    def sloppy(case):
        call = made(case)
        call.loss = Sloppy(call.loss, fault)
        return call

    monkeypatch.setattr(fuzzing, "made", sloppy)
    assert fuzzing.first_problem(case)


def test_accepted_nonsense_is_found(monkeypatch):
    case = case_of(fault="target")
    assert not fuzzing.first_problem(case)
    monkeypatch.setattr(fuzzing, "_spoil", lambda *arguments: None)
    monkeypatch.setattr(fuzzing, "is_faulty", lambda call: True)
    assert "accepted" in fuzzing.first_problem(case)


def test_failures_are_made_simpler():
    case = dataclasses.replace(fuzzing.random_case(2), shape=(4, 40), axis=-1, threads=2, stream=True)
    small = fuzzing.simplest(case, fails=lambda c: c.shape[0] > 2 and c.stream)
    assert small.shape == (3, 1)
    assert small.stream
    assert (small.threads, small.n_derivatives, small.layouts) == (1, 0, {})


def test_the_line_of_a_report_runs():
    case = dataclasses.replace(fuzzing.random_case(5), levels=("no such level",))
    line = fuzzing.report(case).splitlines()[-1]
    expression = line[line.index("print(") + 6 : -2]
    assert "no such level" not in expression or eval(expression, vars(fuzzing))
