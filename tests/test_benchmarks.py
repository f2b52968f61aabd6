"""The benchmarks: their arithmetic, their tables, and the protocol of their processes."""

import contextlib
import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import REPOSITORY

import keras_vit
from benchmarks import contenders, gpu_programs, measuring, results, serving, startup
from benchmarks.__main__ import SUITES, parse, rows_of
from benchmarks.matrix_products import products_of
from benchmarks.measuring import (
    TOLERANCES,
    Cell,
    Limits,
    measure_row,
    relative_difference,
    run_once,
)
from benchmarks.model_rows import Row, memory_table
from benchmarks.processes import Worker
from benchmarks.ratios import best_of_each, matrix_rate, speed_ratio, spread
from benchmarks.table import conclusion, idle_warning, markdown, row_table

TESTS = Path(__file__).parent
LIMITS = Limits(repetitions=2, timeout=30, compile_timeout=60)


@dataclasses.dataclass(frozen=True)
class StandIn(contenders.Contender):
    """A contender of stand_in_contenders.py."""

    def environment(self, dtype):
        paths = str(REPOSITORY), str(TESTS), os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": os.pathsep.join(paths)}


def stand_in(name, *, make="step", packages=("numpy",), **job):
    job.setdefault("numbers", [1.0, -2.0])
    return StandIn(name, "numpy", "", f"stand_in_contenders:{make}", packages, job)


def cell(name, *seconds, **fields):
    return Cell(name, seconds=list(seconds), build_seconds=1.0, first_seconds=1.0, **fields)


def measured(tmp_path, *rows, limits=LIMITS, compare=(None, 1e-3)):
    return measure_row(rows, {}, limits, tmp_path, compare=compare, say=lambda line: None)


@pytest.fixture(autouse=True)
def one_step_a_repetition(monkeypatch):
    monkeypatch.setattr(measuring, "REPETITION_SECONDS", 1e-9)


# Arithmetic and tables.


def test_ratios_are_made_pair_by_pair():
    # The machine became ten times slower in the last turn; each pair says the same.
    ratio = speed_ratio([1.0, 2.0, 10.0], [1.5, 3.0, 15.0])
    assert (ratio.median, ratio.least, ratio.most) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError):
        speed_ratio([1.0, 2.0], [1.0])


def test_spread():
    found = spread([5.0, 1.0, 4.0])
    assert (found.median, found.least, found.most) == (4.0, 1.0, 5.0)


def test_the_best_of_each_side():
    cells = [
        cell("keras_vit jax", 3.0, 3.0, 3.0),
        cell("keras_vit tensorflow", 2.0, 2.0, 2.0),
        cell("keras-hub jax", 2.5, 2.5, 2.5),
        cell("timm torch eager", 1.0, 1.5, 9.0),
        Cell("timm torch compile", absent="over 120 s"),
    ]
    ours, peer = best_of_each(cells)
    assert (ours.name, peer.name) == ("keras_vit tensorflow", "timm torch eager")
    assert best_of_each([]) == (None, None)


def test_the_best_peer_is_the_one_that_is_fastest_in_the_same_turns():
    ours = cell("keras_vit jax", 1.0, 2.0, 3.0)
    # Its median is smaller, as the machine was slow in the other's second turn.
    lucky = cell("timm torch eager", 2.0, 2.1, 3.6)
    steady = cell("keras-hub jax", 1.1, 2.2, 3.3)
    assert best_of_each([ours, lucky, steady]) == (ours, steady)


def test_matrix_rate_is_that_of_the_fastest_framework():
    cells = [cell("matrix products jax", 2.0), cell("matrix products torch", 1.0, 5.0, 0.5)]
    assert matrix_rate(cells, 3e9) == 3e9
    assert matrix_rate([Cell("matrix products jax", absent="not installed: jax")], 1) is None


@pytest.mark.parametrize("outputs", [[1.0, np.nan], [1.0], [1.0, np.inf]])
def test_what_cannot_be_compared_differs_infinitely(outputs):
    assert relative_difference(np.array(outputs), np.array([1.0, 2.0])) == np.inf


def test_difference_is_a_share_of_the_largest_value():
    found = relative_difference(np.array([1.0, -4.0]), np.array([1.2, -4.0]))
    assert found == pytest.approx(0.05)


def test_table_says_why_a_figure_is_missing():
    cells = [
        cell("keras_vit jax", 0.1, 0.2, peak_memory=3 * 2**20, built_memory=2**20, difference=1e-6),
        cell("timm torch eager", 0.2, 0.4),
        Cell("timm torch compile", absent="over 120 s"),
        Cell("keras-hub jax", absent="differs", failed=True),
    ]
    lines = row_table(cells, 8, flops=15e9, rate=200e9).splitlines()
    assert len({len(line) for line in lines}) == 1
    ours, peer, late, failed = lines[2:]
    # 8 images in 0.1 and 0.2 s; 15 GFLOP in 0.15 s are half of 200 GFLOP/s.
    assert (
        "60.0 (40.0..80.0)" in ours
        and "50%" in ours
        and "1.0e-06" in ours
        and "| 3 | 2 |" in (" ".join(ours.split()))
    )
    assert "2.00 (2.00..2.00)" in peer
    assert "over 120 s" in late
    assert "FAILED: differs" in failed


def test_conclusion_names_the_best_peer_and_each_library():
    cells = [cell("keras_vit jax", 1.0), cell("timm torch", 3.0), cell("keras-hub jax", 2.0)]
    said = conclusion(cells)
    assert "2.00 (2.00..2.00) x keras-hub jax, the best peer" in said
    assert "3.00 (3.00..3.00) x timm torch" in said
    assert conclusion(cells[:1]) == "Nothing to compare."


def test_conclusion_says_what_is_without_frozen_weights():
    cells = [
        cell("keras_vit tensorflow", 2.0),
        cell("keras_vit tensorflow frozen", 1.0),
        cell("timm torch eager", 3.0),
        cell("timm torch compile, frozen", 1.5),
    ]
    frozen, plain = conclusion(cells).split("\n\n")
    assert "1.50 (1.50..1.50) x timm torch compile, frozen, the best peer" in frozen
    assert plain.startswith("Without frozen weights: keras_vit tensorflow is 1.50")
    assert plain.endswith("x timm torch eager, the best peer.")


def test_a_table_of_memory_says_what_failed():
    row = Row("train", "vit_ti16", 224, 1, "float32")
    said = memory_table([(row, [Cell("keras-hub jax", absent="differs", failed=True)])])
    assert "FAILED: differs" in said


def test_idle_contenders_that_compute_are_named():
    assert idle_warning([cell("a", 1.0, idle=0.01)]) is None
    assert "b (0.80 cores)" in idle_warning([cell("b", 1.0, idle=0.8)])


def test_markdown():
    assert markdown(["", "x"], [["a", 1], ["bb", 22]]).splitlines() == [
        "|    |  x |",
        "|----|---:|",
        "| a  |  1 |",
        "| bb | 22 |",
    ]


@pytest.mark.parametrize("variant", ["vit_ti16", "vit_b16"])
def test_products_are_the_multiply_adds_of_the_model(variant):
    config = keras_vit.models.VisionTransformerConfig(**keras_vit.models.VARIANTS[variant])
    flops = sum(product.flops for product in products_of(config, batch_size=3))
    assert flops == 3 * keras_vit.models.counts.count_flops(config)


def test_results_are_written_with_command_and_machine(tmp_path):
    bars = [("row", [("timm", spread([1.0, 1.2])), ("keras-hub", spread([0.5, 0.9]))])]
    text = results.write("suite", {"rows": [1]}, "the table", bars=bars, folder=tmp_path)
    assert "python -m benchmarks" in text and "cores" in text and "the table" in text
    names = {"suite.json", "suite.md"} | ({"suite.png"} if find_spec("matplotlib") else set())
    assert {path.name for path in tmp_path.iterdir()} == names
    # The plot of an earlier run would be beside this one's table.
    results.write("suite", {"rows": []}, "nothing was timed", bars=[("row", [])], folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"suite.json", "suite.md"}


# The command line.


def test_all_suites_without_a_name():
    suites, options = parse([])
    assert tuple(suites) == SUITES
    titles = [row.title for row in rows_of("forward", options)]
    assert "forward: vit_b16, 224 px, batch 8, bfloat16" in titles
    assert len(titles) == 8
    sizes = [(row.model, row.batch_size, row.dtype) for row in rows_of("train", options)]
    assert sizes == [("vit_ti16", 16, "float32"), ("vit_b16", 4, "float32")]


def test_unknown_suite(capsys):
    with pytest.raises(SystemExit):
        parse(["fordward"])
    assert "no such suite: fordward" in capsys.readouterr().err


def test_contenders_are_chosen_by_parts_of_their_names():
    found = contenders.chosen(contenders.TRAIN, ["timm", "keras_vit jax"])
    names = [contender.name for contender in found]
    assert names == ["keras_vit jax", "timm torch eager", "timm torch compile"]
    (found,) = contenders.chosen(contenders.TRAIN, ["keras_vit tensorflow"])
    assert found.name == "keras_vit tensorflow"
    with pytest.raises(ValueError, match="No contender's name contains 'flax'"):
        contenders.chosen(contenders.FORWARD, ["flax"])


def test_an_unknown_contender_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        parse(["forward", "train", "--contenders", "no XLA"])
    assert "train: No contender's name contains 'no XLA'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--contenders", "keras-hubb"], "build: No contender's name contains"),
        (["scale", "--contenders", "timm"], "--contenders is read by none of the suites scale"),
        (["import", "build", "--models", "vit_b16"], "--models is read by none"),
        (["memory", "--repetitions", "3"], "--repetitions is read by none"),
        (["forward", "--models", "vit_ti16", "vit_b61"], "no such model: vit_b61"),
    ],
)
def test_what_would_be_ignored_is_refused(capsys, arguments, words):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert words in capsys.readouterr().err


def test_an_option_that_one_of_the_suites_reads():
    suites, options = parse(["import", "train", "--models", "vit_b16"])
    assert (suites, options.models) == (["import", "train"], ("vit_b16",))


@pytest.mark.parametrize("table", [contenders.FORWARD, contenders.TRAIN])
def test_names_of_contenders_are_unique(table):
    assert len({contender.name for contender in table}) == len(table)


# The processes.


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_the_memory_of_steps_is_told_where_that_of_building_is_forgotten(
    tmp_path, monkeypatch, is_forgotten
):
    ask = Worker.ask

    def asked(worker, timeout, **request):
        answer = ask(worker, timeout, **request)
        return {**answer, "since_built": is_forgotten} if request["do"] == "memory" else answer

    monkeypatch.setattr(Worker, "ask", asked)
    (found,) = measured(tmp_path, stand_in("a"))
    assert found.peak_memory > 0
    assert (found.step_memory is not None) == is_forgotten


def test_equal_contenders_are_timed_in_pairs(tmp_path):
    first, second = measured(tmp_path, stand_in("a"), stand_in("b"))
    assert first.absent is second.absent is None
    assert len(first.seconds) == len(second.seconds) == LIMITS.repetitions
    assert first.difference == second.difference == 0
    assert first.facts == {"device": "none"}


def test_alone_each_ends_before_the_next_begins(tmp_path):
    log = tmp_path / "log"
    rows = [stand_in(name, log=str(log), signature=name) for name in "ab"]
    limits = dataclasses.replace(LIMITS, alone=True)
    first, second = measured(tmp_path, *rows, limits=limits)
    calls = log.read_text()
    assert calls == "a" * (len(calls) // 2) + "b" * (len(calls) // 2)
    assert len(first.seconds) == len(second.seconds) == LIMITS.repetitions
    assert second.difference == 0
    log.unlink()
    measured(tmp_path, *rows)
    assert "ba" in log.read_text()


def test_what_computes_something_else_fails_and_is_not_timed(tmp_path):
    right, wrong = measured(tmp_path, stand_in("a"), stand_in("b", numbers=[1.0, -2.1]))
    assert right.seconds
    assert wrong.failed and "differs by 5.0e-02" in wrong.absent
    assert not wrong.seconds


def test_a_reference_that_is_given_counts_for_all(tmp_path):
    compare = np.array([3.0, -2.0]), 1e-3
    (found,) = measured(tmp_path, stand_in("a"), compare=compare)
    assert found.failed


def test_over_time_is_said_and_the_others_go_on(tmp_path):
    limits = dataclasses.replace(LIMITS, timeout=0.5)
    # The first call is the comparison; the second is timed.
    late, other = measured(
        tmp_path, stand_in("a", calls_before_sleep=1), stand_in("b"), limits=limits
    )
    assert late.absent.startswith("over ") and not late.failed and not late.seconds
    assert len(other.seconds) == LIMITS.repetitions


def test_a_contender_that_dies_has_failed(tmp_path):
    dead, other = measured(tmp_path, stand_in("a", calls_before_death=1), stand_in("b"))
    assert dead.failed and "status 3: the last words" in dead.absent
    assert other.seconds


def test_missing_packages_are_said(tmp_path):
    rows = (
        stand_in("a", packages=("numpy", "no_such_package")),
        stand_in("b", make="missing"),
        stand_in("c"),
    )
    *without, there = measured(tmp_path, *rows)
    assert [found.absent for found in without] == ["not installed: no_such_package"] * 2
    assert not any(found.failed for found in without)
    assert there.seconds


def test_start_of_a_program():
    program = startup.Start("", "", "", "import math", "x = math.sqrt(4)", "x").program
    seconds, parameters = startup.run_program(program, "tensorflow", 30)
    assert seconds >= 0 and parameters == 2
    failed = startup.run_program("raise ValueError('no')", "tensorflow", 30)
    assert failed == "FAILED: ValueError: no"
    assert startup.run_program("while True: pass", "tensorflow", 0.5) == "over 0.5 s"


def test_models_of_different_size_are_not_compared():
    rows = [
        startup.Start("a", "sys", "keras_vit", "", "x = 1", "1"),
        startup.Start("b", "sys", "numpy", "", "x = 1", "2"),
    ]
    startup.measure(rows, Limits(repetitions=1, timeout=30), say=lambda line: None)
    assert all(row.absent.startswith("FAILED") for row in rows)


def test_rows_of_a_start_are_chosen_by_parts_of_their_names(tmp_path, monkeypatch):
    timm = startup.Start("timm vit", "sys", "sys", "", "x = 1", "1")
    ours = startup.Start("keras_vit ViT, jax", "sys", "keras_vit", "", "x = 1", "1")
    monkeypatch.setattr(startup, "starts", lambda suite: [ours, timm])
    arguments = ["build", "--repetitions", "1", "--folder", str(tmp_path), "--contenders"]
    _, options = parse([*arguments, "timm"])
    said = []
    assert startup.run("build", options, said.append)
    table = (tmp_path / "build.md").read_text()
    assert "| timm vit" in table and "| keras_vit ViT" not in table


def test_starts_are_beside_those_of_their_framework():
    def start(name, framework, *seconds):
        return startup.Start(
            name, framework, name.split()[0], "", "", seconds=list(seconds), count=1
        )

    rows = [
        start("keras_vit a", "tensorflow", 1.0),
        start("keras_hub a", "tensorflow", 3.0),
        start("keras_vit b", "jax", 2.0),
        start("keras_hub b", "jax", 8.0),
        start("timm", "torch", 5.0),
    ]
    ratios = {name: found.median for name, found in startup.ratios(rows).items()}
    assert (ratios["keras_hub a"], ratios["keras_hub b"], ratios["timm"]) == (3.0, 4.0, 5.0)
    rows[0].seconds, rows[0].absent = [], "over 1 s"
    assert startup.ratios(rows).keys() == {"keras_vit b", "keras_hub b"}


TINY = {
    "model": "vit_ti16",
    "fields": {"hidden_size": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2},
    "image_size": 32,
    "batch_size": 2,
    "dtype": "float32",
    "steps_compared": 3,
}


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports need TensorFlow")
def test_what_is_exported_answers_as_the_model_before_it_is_timed(tmp_path):
    with contextlib.ExitStack() as stack:
        files = serving.jpeg_files(None, 2)
        rows = serving.runners("vit_ti16", 2, 2, files, tmp_path, stack)
        assert {*serving.FORWARD, "keras_vit SavedModel, bytes, bfloat16"} < rows.keys()
        rates = serving.measure(rows, 2, repetitions=1, batches=1)
        assert all(rate > 0 for (rate,) in rates.values())


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["forward", "train"])
def test_all_libraries_compute_the_same_from_the_same_weights(tmp_path, suite):
    job = {**TINY, "weights": str(tmp_path)}
    reference = run_once(
        "benchmarks.inputs:write_weights",
        {**job, "folder": str(tmp_path)},
        {},
        tmp_path / "reference.npy",
        60,
    )
    # Torch's compiler takes longer than a test may.
    table = {"forward": contenders.FORWARD, "train": contenders.TRAIN}[suite]
    rows = [row for row in table if not row.options.get("compile")]
    cells = measure_row(
        rows,
        job,
        Limits(repetitions=1),
        tmp_path,
        compare=(reference if suite == "forward" else None, TOLERANCES[suite, "float32"]),
        say=lambda line: None,
    )
    assert not [(found.name, found.absent) for found in cells if found.failed]
    ours = [found for found in cells if found.name.startswith("keras_vit ")]
    assert any(found.seconds and 0 < found.step_memory < found.peak_memory for found in ours)


def test_a_fusion_that_takes_a_slice_reads_no_more():
    program = """HloModule example

%cut (x: f32[8,4], y: bf16[2,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = bf16[2,4]{1,0} parameter(1)
  %s = f32[2,4]{1,0} slice(%x), slice={[0:2], [0:4]}
  %w = f32[2,4]{1,0} convert(%y)
  ROOT %a = f32[2,4]{1,0} add(%s, %w)
}

ENTRY %main (a: f32[8,4], b: bf16[2,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[2,4]{1,0} parameter(1)
  %c = f32[8,4]{1,0} copy(%a)
  %d = (bf16[2,4]{1,0}, s8[16]{0}) custom-call(%b), custom_call_target="__cublas$lt$matmul"
  %e = bf16[2,4]{1,0} get-tuple-element(%d), index=0
  ROOT %f = f32[2,4]{1,0} fusion(%c, %e), kind=kLoop, calls=%cut
}
"""
    assert list(gpu_programs.entry_operations(program)) == [
        ("copy", 128 + 128),
        ("__cublas$lt$matmul", 16 + 16 + 16),
        ("fusion", 32 + 16 + 32),
    ]
