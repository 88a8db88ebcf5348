"""Race contenders on one case, or variants of fastxent beside each other: check, time in turns, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.baselines import CONTENDERS
from benchmarks.cases import Case, Problem, make_problem
from benchmarks.ceiling import Ceiling, arithmetic_ms
from benchmarks.check import compare, complaint, right_answer
from benchmarks.comparisons import Comparison
from benchmarks.machine import BUSY, available_memory, busy_elsewhere
from benchmarks.measure import Contestant, Samples, fastest_form, interleave, summary

Row = dict[str, Any]
ARRAYS_AT_ONCE = 12  # of the size of the logits: peers copy, and the check in float64 has temporaries


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    threads: int
    level: str
    seconds: float  # for each case
    min_rounds: int
    attempts: int  # if others disturb
    ceiling: Ceiling | None
    elementary: dict[str, dict[str, float]]


def too_large(case: Case) -> bool:
    """Whether the machine has not the memory for `case`."""
    return ARRAYS_AT_ONCE * case.elements * max(case.itemsize, 4) > available_memory()


def race(case: Case, keys: Sequence[str], settings: Settings) -> Row:
    """Check and time the contenders of one case; return its row of the results."""
    problem = make_problem(case, settings.threads)
    restore = problem.restore if problem.in_place else None
    calls, contenders, problems = prepare(problem, keys, restore)
    contestants = [
        Contestant(key, call, restore, estimate=contenders[key]["first_seconds"]) for key, call in calls.items()
    ]
    loops = settings.ceiling.loops(problem) if settings.ceiling else {}
    contestants += [Contestant(name, loop) for name, (_, loop) in loops.items()]
    if case.yardstick:
        contestants.append(Contestant("np.add", EXTRAS["np.add"](problem)))

    samples, busy_cpus = time_calmly(contestants, settings)
    times = {name: summary(values) for name, values in samples.items()}
    return facts(case, settings) | {
        "status": "FAIL" if problems else "ok",
        "problems": problems,
        "contenders": {key: contender | times[key] for key, contender in contenders.items()},
        "ceilings": with_speed(loops, times),
        "yardstick": times.get("np.add"),
        "busy_cpus": busy_cpus,
    }


def facts(case: Case, settings: Settings) -> Row:
    """Return what is known of a case without measuring it."""
    return {
        "name": case.name,
        **asdict(case),
        "shape_text": case.shape_text,
        "rows": case.rows,
        "n_classes": case.n_classes,
        "elements": case.elements,
        "array_bytes": case.array_bytes,
        "bytes_moved": case.bytes_moved,
        "arithmetic_ms": arithmetic_ms(case, settings.elementary, case.threads or settings.threads),
    }


def with_speed(loops: Mapping[str, tuple[int, Any]], times: Mapping[str, dict[str, float | int]]) -> Row:
    """Return the times of the memory loops, with the bytes that each moved."""
    return {name: times[name] | {"bytes": n_bytes} for name, (n_bytes, _) in loops.items()}


def prepare(
    problem: Problem, keys: Sequence[str], restore: Callable[[], None] | None
) -> tuple[dict[str, Callable[[], Any]], dict[str, Row], list[str]]:
    """Find the fastest form of each contender and check it; return calls, facts, and what is wrong."""
    answer = right_answer(problem)
    calls, facts, problems = {}, {}, []
    for key in keys:
        contender = CONTENDERS[key]
        forms = contender.forms(problem)
        if not forms:
            continue
        form, call = fastest_form(forms, restore)
        if restore:
            restore()
        elif problem.grad is not None:
            problem.grad.fill(np.nan)  # the answer of the contender before must not pass for this one's
        begin = time.perf_counter()
        value, grad = call()
        seconds = time.perf_counter() - begin
        errors = compare(value, grad, answer, problem.case, every_row=contender.strict)
        wrong = complaint(errors, answer, problem.case, strict=contender.strict)
        if wrong:
            problems.append(f"{contender.label}: {wrong}")
            continue
        calls[key] = call
        facts[key] = {"form": form, "errors": asdict(errors), "first_seconds": seconds}
    return calls, facts, problems


def compare_variants(comparison: Comparison, settings: Settings) -> Row:
    """Check and time fastxent's variants of one case beside each other; return them and the memory loops."""
    contestants, problems, cases = [], [], {}
    plain: Problem | None = None
    for name, case in comparison.variants.items():
        problem = make_problem(case, settings.threads)
        plain = plain or problem
        switch = partial(set_up, case, settings)
        switch()
        calls, _, wrong = prepare(problem, ["fastxent"], None)
        problems += [f"{name}: {text}" for text in wrong]
        contestants += [Contestant(name, call, switch=switch) for call in calls.values()]
        cases[name] = facts(case, settings)
    assert plain is not None
    loops = settings.ceiling.loops(plain) if settings.ceiling and plain.logits.flags.c_contiguous else {}
    contestants += [Contestant(name, loop) for name, (_, loop) in loops.items()]
    contestants += [Contestant(name, EXTRAS[name](plain)) for name in comparison.extras]

    samples, busy_cpus = time_calmly(contestants, settings)
    set_up(None, settings)
    times = {name: summary(values) for name, values in samples.items()}
    return {
        "name": comparison.name,
        "line": comparison.line,
        "topic": comparison.topic,
        "plain": next(iter(comparison.variants)),
        "plain_case": next(iter(comparison.variants.values())).name,
        "variants": {name: cases[name] | times[name] for name in cases if name in times},
        "extras": {name: times[name] for name in comparison.extras},
        "ceilings": with_speed(loops, times),
        "status": "FAIL" if problems else "ok",
        "problems": problems,
        "busy_cpus": busy_cpus,
    }


def set_up(case: Case | None, settings: Settings) -> None:
    """Give fastxent the threads and the instruction set of `case`, or those of the run."""
    import fastxent
    from fastxent import _config

    fastxent.set_num_threads((case and case.threads) or settings.threads)
    _config.use_level((case and case.level) or settings.level)


def time_calmly(contestants: Sequence[Contestant], settings: Settings) -> tuple[Samples, float]:
    """Time the contestants, again if other processes disturbed them; return the calmest samples and the disturbance.

    The disturbance is how many cpus others used meanwhile; it does not look at the times, so nothing is picked.
    """
    attempts = []
    for _ in range(settings.attempts):
        begin, busy = time.perf_counter(), busy_elsewhere()
        samples = interleave(contestants, seconds=settings.seconds, min_rounds=settings.min_rounds)
        attempts.append((max(0.0, (busy_elsewhere() - busy) / (time.perf_counter() - begin)), samples))
        if attempts[-1][0] <= BUSY:
            break
    busy_cpus, samples = min(attempts, key=lambda attempt: attempt[0])
    return samples, round(busy_cpus, 3)


def _one_add(problem: Problem) -> Callable[[], Any]:
    return partial(np.add, problem.logits, problem.logits, out=np.empty_like(problem.logits))


def _empty_and_fill(problem: Problem) -> Callable[[], Any]:
    """Touch as many fresh pages as a new gradient has."""
    logits = problem.logits
    return lambda: np.empty_like(logits).fill(0)


def _textbook(problem: Problem) -> Callable[[], Any]:
    (call,) = CONTENDERS["numpy_textbook"].forms(problem).values()
    return call


EXTRAS: dict[str, Callable[[Problem], Callable[[], Any]]] = {
    "np.add": _one_add,
    "np.empty + fill": _empty_and_fill,
    "NumPy textbook": _textbook,
}
