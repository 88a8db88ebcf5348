"""The pure functions of the benchmarks: verdicts, tables, the section of the README, cliffs. Nothing is timed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench, cases, guard, readme, report, verdict
from benchmarks.cases import Case, make_problem
from benchmarks.check import compare, complaint, right_answer
from benchmarks.comparisons import COMPARISONS, runnable
from benchmarks.promises import LINES, PROMISES, Promise
from benchmarks.sweeps import cliffs, spread


def timed(milliseconds):
    return {"min_ms": milliseconds, "median_ms": 1.1 * milliseconds, "lower_quartile_ms": 0, "upper_quartile_ms": 0}


def contender(milliseconds):
    errors = {"value": 1e-8, "grad": 1e-8, "grad_relative": 1e-8, "grad_contract": 0.1}
    return {"form": "call", "errors": errors, **timed(milliseconds)}


def race(ours=1.0, peer=4.0, copy=0.5, **changes):
    """Return a row of results as it comes out of the JSON."""
    case = Case("CrossEntropy", (200_000, 10), "float32", line="line1")
    row = {
        "name": case.name,
        "loss": case.loss,
        "shape": list(case.shape),
        "shape_text": case.shape_text,
        "dtype": case.dtype,
        "operation": case.operation,
        "output": case.output,
        "options": {},
        "line": case.line,
        "rows": case.rows,
        "n_classes": case.n_classes,
        "elements": case.elements,
        "array_bytes": case.array_bytes,
        "bytes_moved": case.bytes_moved,
        "arithmetic_ms": 0.1,
        "status": "ok",
        "problems": [],
        "contenders": {"fastxent": contender(ours), "jax": contender(peer), "numpy_textbook": contender(20 * ours)},
        "ceilings": {
            "read, 1 stream": timed(copy / 2) | {"bytes": case.array_bytes},
            "copy, streaming stores": timed(copy) | {"bytes": 2 * case.array_bytes},
        },
        "yardstick": None,
        "busy_cpus": 0.0,
    }
    return row | changes


def results_of(*rows, comparisons=()):
    machine = {
        "cpu": "Some CPU",
        "cpus": 2,
        "virtual": True,
        "caches": {"L1": "48K"},
        "governor": None,
        "huge_pages": None,
        "load_before": 0.1,
        "system": "Linux x86_64",
        "compiler": "gcc 12",
        "python": "3.11",
        "versions": {"numpy": "2.4", "jax": "0.10", "torch": None},
        "commit": None,
    }
    return {
        "machine": machine,
        "settings": {"threads": 2, "level": "avx2", "seconds_per_case": 1, "partial": False},
        "missing": {"torch": "ImportError: none"},
        "elementary_ns": {"float32": {"exp": 0.2}},
        "skipped": [],
        "rows": list(rows),
        "comparisons": list(comparisons),
        "sweeps": [],
        "resident_set": [],
        "one_thread": [],
    }


def comparison(**milliseconds):
    """Return a comparison whose first variant is the plain one."""
    facts = {name: race()[name] for name in ("name", "operation", "bytes_moved", "arithmetic_ms", "options")}
    return {
        "name": "options: case",
        "plain_case": "case",
        "line": "line4",
        "topic": "options",
        "plain": next(iter(milliseconds)),
        "variants": {name.replace("_", " "): facts | timed(time) for name, time in milliseconds.items()},
        "extras": {},
        "ceilings": race()["ceilings"],
        "status": "ok",
        "problems": [],
        "busy_cpus": 0.0,
    }


class TestCases:
    def test_every_line_is_measured_and_promised(self):
        assert {promise.line for promise in PROMISES} == set(LINES)
        raced = {case.line for case in cases.CASES} | {one.line for one in COMPARISONS}
        assert raced >= set(LINES) - {"line6", "line7"}

    def test_names_are_unique_within_a_line(self):
        names = [(case.line, case.name) for case in cases.CASES]
        assert len(set(names)) == len(names)

    def test_large_cases_exceed_64_mb(self):
        assert all(case.array_bytes > 64e6 for case in cases.CASES if case.line in ("line1", "line2"))

    @pytest.mark.parametrize(
        ("case", "n_bytes"),
        [
            (Case("CrossEntropy", (6, 5), "float32"), 6 * 5 * 8 + 6 * 8),
            (Case("CrossEntropy", (6, 5), "float64", operation="value"), 6 * 5 * 8 + 6 * 8),
            (Case("CrossEntropy", (6, 5), "float32", soft_target=True), 6 * 5 * 12),
            (Case("BinaryCrossEntropy", (6,), "float32"), 6 * 12),
            (Case("CrossEntropy", (2, 5, 3), "float16", options={"axis": 1}), 2 * 5 * 3 * 4 + 6 * 8),
        ],
        ids=str,
    )
    def test_bytes_moved(self, case, n_bytes):
        assert case.bytes_moved == n_bytes

    @pytest.mark.parametrize("layout", cases.LAYOUTS)
    def test_layouts_hold_the_same_numbers(self, layout):
        plain = make_problem(Case("CrossEntropy", (7, 4), "float32"), 1)
        other = make_problem(Case("CrossEntropy", (7, 4), "float32", layout=layout), 1)
        np.testing.assert_array_equal(plain.logits, other.logits)
        assert other.grad.strides == other.logits.strides

    def test_only_what_the_machine_can_run_is_compared(self):
        (threads, *_) = (one for one in COMPARISONS if one.topic == "threads")
        (levels, *_) = (one for one in COMPARISONS if one.topic == "levels")
        assert runnable(threads, 1, ()) is None
        assert runnable(levels, 1, ("baseline",)) is None
        assert list(runnable(levels, 1, ("avx2", "baseline")).variants) == ["avx2", "baseline"]


class TestCheck:
    @pytest.mark.parametrize(
        "case",
        [
            Case("CrossEntropy", (50, 5), "float32"),
            Case("CrossEntropy", (50, 5), "float64", options={"ignore_index": -100}),
            Case("CrossEntropy", (50, 5), "float32", soft_target=True),
            Case("CrossEntropy", (5, 4, 3), "float32", options={"axis": 1}),
            Case("CrossEntropy", (50, 5), "float16", options={"reduction": "sum"}),
            Case("FocalLoss", (50, 5), "float32", options={"gamma": 1.5}),
            Case("BinaryFocalLoss", (50,), "float32", options={"gamma": 1.5, "alpha": 0.25}),
        ],
        ids=str,
    )
    def test_right_answers_pass_and_wrong_ones_do_not(self, case):
        import fastxent

        problem = make_problem(case, 1)
        answer = right_answer(problem)
        value, grad = case.make_loss(fastxent).value_and_grad(problem.logits, problem.target)
        assert complaint(compare(value, grad, answer, case), answer, case, strict=True) is None
        assert "value" in complaint(compare(1.001 * value, grad, answer, case), answer, case, strict=True)
        wrong = grad.copy()
        wrong[0] += grad.dtype.type(0.1 * answer.grad_scale)
        assert "gradient" in complaint(compare(value, wrong, answer, case), answer, case, strict=True)
        wrong[0] = np.nan
        assert "gradient" in complaint(compare(value, wrong, answer, case), answer, case, strict=True)


class TestVerdict:
    def test_ceiling_counts_the_target_as_bytes(self):
        # 17.6 MB to move, of which the loop moves 16 MB in 0.5 ms.
        assert verdict.fraction_of_memory(race(ours=1.0, copy=0.5)) == pytest.approx(0.5 * 17.6 / 16)

    def test_value_is_judged_by_reads(self):
        row = race(operation="value", bytes_moved=8_000_000)
        assert verdict.ceiling(row)[0] == "read, 1 stream"

    @pytest.mark.parametrize(("peer", "kept"), [(3.01, True), (2.99, False)])
    def test_times_of_the_fastest_peer(self, peer, kept):
        promise = Promise("line4", "3x", "race", "over fastest peer", 3)
        (judged,) = verdict.judge(promise, results_of(race(peer=peer)))
        assert judged.kept is kept
        assert judged.values["min_ms"] == pytest.approx(peer)
        assert judged.note == "JAX"

    def test_one_statistic_is_not_enough(self):
        row = race(peer=3.5)
        row["contenders"]["jax"]["median_ms"] = 2.0
        promise = Promise("line4", "3x", "race", "over fastest peer", 3)
        assert verdict.judge(promise, results_of(row))[0].kept is False

    def test_nothing_to_compare_with_is_not_judged(self):
        row = race(contenders={"fastxent": contender(1.0)})
        promise = Promise("line4", "3x", "race", "over fastest peer", 3)
        assert verdict.judge(promise, results_of(row))[0].kept is None

    def test_wrong_results_keep_no_promise(self):
        promise = Promise("line4", "3x", "race", "over fastest peer", 3)
        assert verdict.judge(promise, results_of(race(status="FAIL")))[0].kept is False

    def test_promises_choose_by_fields(self):
        promise = Promise("line1", "", "race", "over fastest peer", 3, where={"n_classes": range(100, 200)})
        assert verdict.judge(promise, results_of(race())) == []
        assert len(verdict.judge(promise, results_of(race(n_classes=100)))) == 1

    def test_variants_are_compared_with_the_plain_one(self):
        results = results_of(comparisons=[comparison(plain=2.0, smoothing=2.5, class_weights=2.7)])
        verdicts = {
            judged.name: judged.kept
            for promise, entries in verdict.judge_all(results)
            for judged in entries
            if promise.metric == "over plain"
        }
        assert verdicts == {"case, smoothing": True, "case, class weights": False}

    def test_losses_and_narrow_wins(self):
        results = results_of(race(name="lost", peer=0.8), race(name="won"))
        assert [(row["name"], key) for row, key, _ in verdict.losses(results)] == [("lost", "jax")]
        assert [row["name"] for row, _, _ in verdict.least_won(results, 2)] == ["lost", "won"]


class TestSweeps:
    @staticmethod
    def points(*times_per_row):
        rows = 1000
        return [
            {"n_classes": k, "rows": rows, "elements": k * rows, "min_ms": rows * time}
            for k, time in enumerate(times_per_row, start=1)
        ]

    def test_smooth_course_has_no_cliff(self):
        assert max(factor for _, factor in cliffs(self.points(1.0, 1.5, 2.0, 2.5))) <= 1

    def test_element_that_gets_dearer(self):
        (_, (classes, factor)) = cliffs(self.points(1.0, 2.0, 6.0))
        assert (classes, factor) == (3, pytest.approx(2.0))

    def test_row_that_gets_cheaper(self):
        (_, (classes, factor)) = cliffs(self.points(1.0, 4.0, 2.0))
        assert (classes, factor) == (3, pytest.approx(2.0))

    def test_spread(self):
        assert spread(self.points(1.0, 2.0, 6.0)) == pytest.approx(2.0)


class TestReport:
    def test_tables_and_goals(self):
        results = results_of(race(), comparisons=[comparison(plain=2.0, smoothing=2.5)])
        text = report.markdown(results)
        assert "| CE 200000x10 float32 value+grad | 1 / 1.1 |" in text
        assert "4.0x / 4.0x" in text
        assert "| options: case | smoothing | 2.5 / 2.75 | 1.25x |" in text
        assert "PASS  line4  >= 3x the fastest peer in every case: 1 of 1" in text
        assert "MISS" not in text.split("Sum:")[1].split("line4")[1].splitlines()[0]

    def test_survives_json(self):
        results = results_of(race(), comparisons=[comparison(plain=2.0, smoothing=2.5)])
        assert report.markdown(json.loads(json.dumps(results))) == report.markdown(results)

    def test_readme_section(self):
        section = readme.speed_section(results_of(race()), "some-cpu-2-cpus")
        assert "| CE 200000x10 | 1.1 | 22 (20.0x) |" in section
        assert "benchmarks/results/some-cpu-2-cpus-classes.png" in section
        assert "Least is won at: CE 200000x10 float32 value+grad (4.0x JAX)." in section

    def test_readme_is_rewritten_between_the_markers(self):
        text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
        once = readme.replaced(text, "new")
        assert once == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
        assert readme.replaced(once, "new") == once
        with pytest.raises(ValueError, match="must have one"):
            readme.replaced("no markers", "new")


class TestCommandLine:
    def test_only_some_goals(self):
        args = bench.parse(["--only", "line5"])
        assert {case.line for case in args.selected} == {"line5"}
        assert not args.comparisons
        assert not args.resident_set
        assert args.partial

    def test_quick_is_a_part(self):
        args, whole = bench.parse(["--quick"]), bench.parse([])
        assert 0 < len(args.selected) < len(whole.selected)
        assert args.sweeps
        assert not set(args.sweeps) & set(whole.sweeps)

    @pytest.mark.parametrize("arguments", [["--only", "line12"], ["--cases", "no such case"], ["--threads", "0"]])
    def test_errors(self, arguments, capsys):
        with pytest.raises(SystemExit):
            bench.parse(arguments)
        assert "error" in capsys.readouterr().err


class TestGuard:
    def test_five_percent_are_allowed(self):
        within, above, new = guard.judge({"a": 105, "b": 106, "c": 1}, {"a": 100, "b": 100})
        assert (within.kept, above.kept, new.kept) == (True, False, False)
        assert within.line().startswith("PASS")
        assert above.line().startswith("MISS")
        assert new.line().startswith("NEW")

    def test_reads_callgrind(self):
        assert guard.total_of("events: Ir\nfn=main\n3 4\nsummary: 1234\n") == 1234
        with pytest.raises(ValueError, match="summary"):
            guard.total_of("events: Ir\n")


def test_the_accuracy_table_of_the_readme_is_that_of_the_results():
    root = Path(__file__).resolve().parent.parent
    readme = (root / "README.md").read_text()
    table = readme.split("<!-- accuracy:begin -->\n")[1].split("<!-- accuracy:end -->")[0]
    results = [file.read_text() for file in (root / "benchmarks" / "results").glob("*-accuracy.md")]
    assert table.count("\n") > 10
    assert any(table in text for text in results)
