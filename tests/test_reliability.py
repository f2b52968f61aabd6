"""What docs/reliability.md promises: signals, locks, damage, full disks, changed options."""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import random_kills
from parameters import slow_except
from small_runs import (
    ARCHITECTURE,
    RECIPE,
    Killed,
    after_row,
    assert_same_weights,
    start,
    wait_for,
    weights_of,
)

from keras_vit.finetune import RunInterrupted, parse_recipe, read_configuration, run
from keras_vit.finetune.folder import disk_errors
from keras_vit.finetune.log import read_log
from keras_vit.finetune.report import read_result
from keras_vit.finetune.signals import stop_requests
from keras_vit.finetune.state import (
    CheckpointWriter,
    Progress,
    replace_file,
    restore_training_state,
    save_training_state,
)

SHORT = dataclasses.replace(
    RECIPE, steps=12, log_every=5, checkpoint_every=4, evaluate_every=3, dropout=0.0
)


def small_run(output, digits, **changes):
    recipe = dataclasses.replace(SHORT, output=str(output), **changes)
    return run(recipe, source=digits, architecture=ARCHITECTURE)


def log_rows(folder):
    return random_kills.without_measurements(read_log(folder / "log.csv"))


@pytest.mark.parametrize(
    "number", slow_except([signal.SIGTERM, signal.SIGINT], fast=[signal.SIGTERM])
)
def test_a_signal_saves_the_step_and_the_rest_is_the_same_to_the_bit(
    tmp_path, digits, monkeypatch, number
):
    with monkeypatch.context() as patch, pytest.raises(RunInterrupted) as caught:
        after_row(patch, 5, lambda: signal.raise_signal(number))
        small_run(tmp_path / "stopped", digits)
    assert caught.value.signal == number
    folder = tmp_path / "stopped" / "run"
    assert str(folder) in str(caught.value)
    # Between two checkpoints and two rows of the log; on JAX the next step has begun by then.
    step = 6 if keras.backend.backend() == "jax" else 5
    assert (folder / "checkpoints" / f"step_{step:08d}.safetensors").exists()
    small_run(tmp_path / "stopped", digits)
    small_run(tmp_path / "whole", digits)
    assert_same_weights(tmp_path / "whole" / "run", folder)
    assert log_rows(folder) == log_rows(tmp_path / "whole" / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_middle_of_a_line_that_is_printed_loses_nothing(tmp_path, monkeypatch):
    class Interrupted(io.FileIO):
        """A file that a signal comes to while Python's buffer writes to it."""

        def write(self, data):
            if stop.signal is None:
                signal.raise_signal(signal.SIGTERM)
            return super().write(data)

    output = io.TextIOWrapper(io.BufferedWriter(Interrupted(tmp_path / "printed", "w")))
    with monkeypatch.context() as patch, stop_requests() as stop, output:
        patch.setattr(sys, "stdout", output)
        print("100 images/s", flush=True)
        assert stop.signal == signal.SIGTERM
    first, second = (tmp_path / "printed").read_text().splitlines()
    assert first.startswith("Received SIGTERM: saving and stopping")
    assert second == "100 images/s"


@pytest.mark.slow
def test_the_command_line_ends_with_the_signals_status(tmp_path):
    process = start(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, steps=100_000)
    wait_for(tmp_path / "run" / "checkpoints" / "step_00000005.safetensors", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in errors.splitlines()[-1]


@pytest.mark.slow
def test_a_second_signal_ends_a_process_in_the_middle_of_a_step():
    program = """
        import hashlib, os, signal, threading, time
        from keras_vit.finetune.signals import stop_requests
        def twice():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)  # Of two at once the system may deliver one.
        with stop_requests() as stop:
            threading.Timer(0.2, twice).start()
            # Minutes of one call into C, which Python's handlers have to wait for.
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder_and_a_killed_ones_lock_is_none(tmp_path, digits):
    process = start(tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "step_00000000.safetensors", process)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(BlockingIOError, match=f"in use.*process {process.pid} on"):
        run(dataclasses.replace(RECIPE, output=str(tmp_path)), source=digits)
    process.kill()
    process.communicate()
    assert (tmp_path / ".run.lock").exists()
    result = run(
        dataclasses.replace(RECIPE, output=str(tmp_path)), source=digits, architecture=ARCHITECTURE
    )
    assert result.steps == RECIPE.steps


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bits(tmp_path):
    options = {"steps": 400}
    assert random_kills.start(tmp_path / "whole", **options).wait() == 0
    steps = random_kills.kill_at_random(tmp_path / "killed", 3, 0.5, seed=1, **options)
    # Each came further than the one before.
    assert 0 < steps[0] < steps[1] < steps[2] < 400
    expected, found = (
        random_kills.outcome(tmp_path / name / "run") for name in ("whole", "killed")
    )
    assert expected == found


def compiled_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_every_cut_and_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    model = compiled_model()
    save_training_state(tmp_path, model, Progress(1), "run")
    kernel = model.layers[0].kernel
    first = np.array(kernel)
    kernel.assign(first + 1)
    newest = save_training_state(tmp_path, model, Progress(2), "run")
    whole = newest.read_bytes()
    draw = np.random.default_rng(0)
    cuts = [whole[:place] for place in draw.choice(len(whole), 50, replace=False)]
    flips = []
    for bit in draw.choice(8 * len(whole), 200, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        flips.append(bytes(damaged))
    for damaged in (*cuts, *flips):
        newest.write_bytes(damaged)
        kernel.assign(first + 2)
        warnings = []
        progress = restore_training_state(tmp_path, model, "run", warn=warnings.append)
        assert progress == Progress(1)
        assert len(warnings) == 1 and str(newest) in warnings[0]
        np.testing.assert_array_equal(kernel, first)
    newest.write_bytes(whole)
    assert restore_training_state(tmp_path, model, "run") == Progress(2)
    np.testing.assert_array_equal(kernel, first + 1)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    import threading

    from keras_vit.finetune import state

    model, may_write = compiled_model(), threading.Event()
    monkeypatch.setattr(state.os, "fsync", lambda _: may_write.wait(60))
    saved = np.array(model.layers[0].kernel)
    with CheckpointWriter(tmp_path, "run") as writer:
        future = writer.save(model, Progress(1))
        # A step of training meanwhile: what is written is what was there before it.
        model.layers[0].kernel.assign(saved + 1)
        assert not future.done()
        may_write.set()
    assert restore_training_state(tmp_path, model, "run") == Progress(1)
    np.testing.assert_array_equal(model.layers[0].kernel, saved)


def test_a_checkpoint_that_cannot_be_written_is_said_at_once(tmp_path):
    model = compiled_model()
    (tmp_path / "checkpoints").write_text("a file")
    with (
        pytest.raises(OSError, match="checkpoints"),
        CheckpointWriter(tmp_path / "checkpoints", "run") as writer,
    ):
        writer.save(model, Progress(1))


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["last", "best"])
def test_early_stopping_and_the_best_weights_survive_an_interruption(
    tmp_path, digits, monkeypatch, keep
):
    # So high a learning rate that the accuracy soon gets no better.
    changes = {"keep": keep, "early_stopping": 2, "steps": 60, "learning_rate": 1.0}
    whole = small_run(tmp_path / "whole", digits, **changes)
    assert whole.steps < 60 and whole.best_step == whole.steps - 6
    with monkeypatch.context() as patch, pytest.raises(RunInterrupted):
        after_row(patch, whole.steps - 3, lambda: signal.raise_signal(signal.SIGTERM))
        small_run(tmp_path / "stopped", digits, **changes)
    stopped = small_run(tmp_path / "stopped", digits, **changes)
    assert (stopped.steps, stopped.best_step) == (whole.steps, whole.best_step)
    assert_same_weights(tmp_path / "whole" / "run", tmp_path / "stopped" / "run")
    by_step = {row["step"]: row for row in read_log(tmp_path / "whole" / "run" / "log.csv")}
    kept = whole.best_step if keep == "best" else whole.steps
    assert whole.validation.accuracy == by_step[kept]["validation_accuracy"]


def test_early_stopping_needs_validation_images(tmp_path, digits):
    with pytest.raises(ValueError, match="there are none"):
        small_run(tmp_path, digits, early_stopping=1, validation_fraction=0.0)


def test_other_options_are_refused_listed_and_accepted_knowingly(tmp_path, digits, capsys):
    small_run(tmp_path, digits)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01, there 0\.1") as caught:
        small_run(tmp_path, digits, learning_rate=0.01, steps=20)
    assert "steps: 20, there 12" in str(caught.value)
    assert "--accept-changes" in str(caught.value) and "--fresh" in str(caught.value)
    result = small_run(tmp_path, digits, learning_rate=0.01, steps=20, accept_changes=True)
    assert result.steps == 20
    (change,) = result.configuration["changes"]
    assert change["after_step"] == 12 and len(change["options"]) == 2
    assert "after step 12" in str(result)
    folder = tmp_path / "run"
    assert (folder / "result_of_step_00000012.json").exists()
    assert [row["step"] for row in read_log(folder / "log.csv")][-1] == 20
    # From now on it is the run with these options.
    small_run(tmp_path, digits, learning_rate=0.01, steps=20)
    assert "nothing more to train" in capsys.readouterr().out
    assert len(read_configuration(folder)["changes"]) == 1
    with pytest.raises(ValueError, match="at step 20 already"):
        small_run(tmp_path, digits, learning_rate=0.01, steps=16, accept_changes=True)
    with pytest.raises(ValueError, match="at step 20 of 20: none is left that momentum could"):
        small_run(tmp_path, digits, learning_rate=0.01, steps=20, momentum=0.5, accept_changes=True)
    # What is read when all steps are done can change still.
    fewer = small_run(
        tmp_path, digits, learning_rate=0.01, steps=20, test_images=100, accept_changes=True
    )
    assert fewer.test.count == 100
    # A second time after the same step, too, what there was stays.
    small_run(tmp_path, digits, learning_rate=0.01, steps=20, test_images=90, accept_changes=True)
    kept = [folder / f"result_of_step_00000020{ending}.json" for ending in ("", "-2")]
    assert [read_result(path).test.count for path in kept] == [len(digits.test), 100]
    assert (folder / "model_of_step_00000020-2.keras").exists()


@pytest.mark.parametrize("changes", [{}, {"steps": 14, "accept_changes": True}])
def test_killed_while_a_result_is_put_aside_it_goes_on(tmp_path, digits, monkeypatch, changes):
    def print_and_end(text, *_, **__):
        if "is kept as" in text:
            raise Killed

    small_run(tmp_path, digits)
    folder, before = tmp_path / "run", weights_of(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("builtins.print", print_and_end)
        small_run(tmp_path, digits, steps=14, accept_changes=True)
    result = small_run(tmp_path, digits, **changes)
    assert result == read_result(folder / "result.json")
    assert (folder / "result_of_step_00000012.json").exists()
    if changes:
        assert (folder / "model_of_step_00000012.keras").exists()
        assert not list(folder.glob("*-2.*"))
    else:
        for expected, found in zip(before, weights_of(folder), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_change_that_divides_the_images_anew_is_never_accepted(tmp_path, digits):
    small_run(tmp_path, digits)
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    more = dataclasses.replace(digits, digest="of one picture more")
    for name, source, changes in (
        ("seed", digits, {"seed": 1}),
        ("train_images", digits, {"train_images": 1000}),
        ("validation_fraction", digits, {"validation_fraction": 0.3}),
        ("own_validation", digits, {"own_validation": "train"}),
        ("data digest", more, {}),
    ):
        with pytest.raises(ValueError, match=f"(?s){name}: .*--fresh") as caught:
            small_run(tmp_path, source, **changes, steps=20, accept_changes=True)
        assert f"With another {name} the run could be judged by images that" in str(caught.value)
        assert "--accept-changes" not in str(caught.value)
        assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_another_optimizer_cannot_go_on_from_the_state_of_this_one(tmp_path, digits):
    small_run(tmp_path, digits)
    # Whose variables would fit, and mean something else.
    for name in ("adamw", "keras_sgd"):
        with pytest.raises(ValueError, match=f"(?s)optimizer: '{name}', there 'sgd'") as caught:
            small_run(tmp_path, digits, optimizer=name, steps=20, accept_changes=True)
        assert "--fresh" in str(caught.value) and "--accept-changes" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, changes, is_kept",
    [
        ("best", {}, True),
        # There are no weights of the best step, or they would be measured in another way.
        ("last", {}, False),
        ("best", {"evaluation_crop_fraction": 0.75}, False),
    ],
)
def test_a_change_keeps_the_best_weights_where_they_can_be_compared(
    tmp_path, digits, before, changes, is_kept
):
    first = small_run(tmp_path, digits, keep=before)
    # So high a learning rate that what comes is worse.
    changes = {"keep": "best", "learning_rate": 30.0, "steps": 20, **changes}
    result = small_run(tmp_path, digits, **changes, accept_changes=True)
    rows = {row["step"]: row for row in read_log(tmp_path / "run" / "log.csv")}
    assert max(row.get("validation_accuracy", 0) for step, row in rows.items() if step > 12) < (
        first.validation.accuracy
    )
    assert result.best_step == first.best_step if is_kept else result.best_step > 12
    assert result.validation.accuracy == rows[result.best_step]["validation_accuracy"]
    earlier = keras.saving.load_model(tmp_path / "run" / "model_of_step_00000012.keras")
    same = [
        np.array_equal(kept, now)
        for kept, now in zip(earlier.get_weights(), weights_of(tmp_path / "run"), strict=True)
    ]
    assert all(same) == is_kept


@pytest.mark.slow
def test_fresh_starts_over_in_a_new_folder(tmp_path, digits):
    small_run(tmp_path, digits)
    before = weights_of(tmp_path / "run")
    result = small_run(tmp_path, digits, learning_rate=0.01, fresh=True)
    assert result.name == "run-2" and (tmp_path / "run-2" / "result.json").exists()
    for expected, found in zip(before, weights_of(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(found, expected)


def run_out_of_memory(output, digits, monkeypatch, **changes):
    """Runs to step 5, after the checkpoint of step 4, and hands back the message of the error."""

    def exhausted():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    with monkeypatch.context() as patch, pytest.raises(MemoryError) as caught:
        after_row(patch, 5, exhausted)
        small_run(output, digits, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "option",
    slow_except(
        [r"--micro-batch-size \d+", "--remat", "--batch-size"], fast=[r"--micro-batch-size \d+"]
    ),
)
def test_what_is_advised_where_the_memory_does_not_suffice_goes_on(
    tmp_path, digits, monkeypatch, capsys, option
):
    message = run_out_of_memory(tmp_path, digits, monkeypatch)
    words = re.search(option, message).group().split()
    if option == "--batch-size":
        words.append("64")
    recipe = dataclasses.replace(SHORT, output=str(tmp_path))
    recipe = parse_recipe([*words, "--accept-changes"], recipe)
    result = run(recipe, source=digits, architecture=ARCHITECTURE)
    assert result.steps == SHORT.steps
    assert "Going on after step 4 of 12" in capsys.readouterr().out


def test_what_cannot_go_on_is_not_advised(tmp_path, digits, monkeypatch):
    message = run_out_of_memory(tmp_path, digits, monkeypatch, batch_size=33, mixup=0.5)
    # 11 divides the batch, half of it does not; a smaller image has other positions.
    assert "--micro-batch-size 11 (now 33;" in message
    assert "--image-size" not in message.partition("--accept-changes")[0]


def test_the_steps_are_the_same_with_other_micro_batches(tmp_path, digits, monkeypatch):
    # What is drawn for each micro-batch would differ.
    options = {"drop_path": 0.0}
    small_run(tmp_path / "whole", digits, **options)
    # Of two parts, four steps are eight micro-batches, with which three parts would not begin.
    for before, after in ((96, 48), (48, 96), (48, 32)):
        output = tmp_path / f"{before}-{after}"
        run_out_of_memory(output, digits, monkeypatch, **options, micro_batch_size=before)
        small_run(output, digits, **options, micro_batch_size=after, accept_changes=True)
        weights = zip(
            weights_of(tmp_path / "whole" / "run"), weights_of(output / "run"), strict=True
        )
        for expected, found in weights:
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("options", [{"evaluate_every": 4}, {}], ids=["between", "at the end"])
def test_evaluation_that_does_not_fit_the_memory_says_what_to_try(
    tmp_path, digits, monkeypatch, capsys, options
):
    def exhausted(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

    with monkeypatch.context() as patch, pytest.raises(MemoryError) as caught:
        patch.setattr("keras_vit.finetune.training.predict_on_device", exhausted)
        small_run(tmp_path, digits, **options)
    assert "Evaluation of" in str(caught.value)
    advice = re.search(r"--evaluation-batch-size (\d+) \(now 128\)", str(caught.value))
    result = small_run(tmp_path, digits, **options, evaluation_batch_size=int(advice.group(1)))
    assert result.steps == SHORT.steps


@pytest.mark.slow
def test_a_step_that_does_not_fit_the_memory_says_what_to_try(tmp_path, digits, monkeypatch):
    message = run_out_of_memory(tmp_path / "short", digits, monkeypatch)
    for advice in ("--micro-batch-size 48", "--remat", "--batch-size"):
        assert advice in message
    small_run(tmp_path / "short", digits)
    small_run(tmp_path / "whole", digits)
    assert_same_weights(tmp_path / "whole" / "run", tmp_path / "short" / "run")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, digits, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"run cannot be written to.*--output"):
        small_run(tmp_path, digits)


@pytest.mark.parametrize("kind, is_named", [(ValueError, False), (RuntimeError, True)])
def test_what_may_not_be_read_is_not_taken_for_the_runs_folder(tmp_path, kind, is_named):
    # A RuntimeError is what libraries in C raise.
    refused = kind("photos/3.png cannot be read: [Errno 13] Permission denied")
    with pytest.raises(OSError if is_named else kind) as caught, disk_errors(tmp_path / "run"):
        raise refused
    assert ("run cannot be written to" in str(caught.value)) == is_named


def test_a_download_that_fails_is_not_taken_for_the_runs_folder(tmp_path):
    with pytest.raises(RuntimeError, match="cannot be downloaded"), disk_errors(tmp_path / "run"):
        try:
            raise PermissionError(13, "Permission denied", "/elsewhere/tfds")
        except PermissionError as error:
            raise RuntimeError(f"pets cannot be downloaded: {error}") from error


@contextlib.contextmanager
def small_disk(path, kibibytes):
    """A disk of its own, mounted at `path`; a function that changes its size."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small disk needs the right to mount one")

    def resize(kibibytes):
        options = f"remount,size={kibibytes}k"
        subprocess.run(["mount", "-o", options, str(path)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.slow
def test_a_full_disk_at_ten_points_of_a_run(tmp_path, digits):
    small_run(tmp_path / "whole", digits)
    disk, full_at = tmp_path / "disk", []
    size = 8
    with small_disk(disk, size) as resize:
        while True:
            try:
                small_run(disk, digits)
                break
            except OSError as error:
                assert f"The disk of {disk / 'run'} is full" in str(error)
            # Whatever is there is whole.
            assert not list(disk.rglob(".partial.*"))
            checkpoints = sorted((disk / "run" / "checkpoints").glob("step_*"))
            full_at.append(checkpoints[-1].name if checkpoints else None)
            size += 8
            resize(size)
        assert len(full_at) >= 10, full_at
        assert len(set(full_at)) >= 3, full_at
        assert_same_weights(tmp_path / "whole" / "run", disk / "run")
        assert log_rows(disk / "run") == log_rows(tmp_path / "whole" / "run")


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    replace_file(path, b"old")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.slow
def test_deterministic_asks_the_backend_for_it_before_it_starts():
    program = """
        import os
        from keras_vit.finetune.reproducibility import fix_order_of_operations
        assert fix_order_of_operations()
        assert "deterministic" not in os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = "--xla_cpu_enable_fast_math=false"
        assert fix_order_of_operations(deterministic=True)
        flags = os.environ["XLA_FLAGS"].split()
        assert flags == ["--xla_cpu_enable_fast_math=false", "--xla_gpu_deterministic_ops=true"]
        import jax.numpy
        jax.numpy.zeros(1).block_until_ready()
        assert fix_order_of_operations(deterministic=True)
        os.environ["XLA_FLAGS"] = ""
        # Too late: it says so.
        assert not fix_order_of_operations(deterministic=True)
    """
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    code = textwrap.dedent(program)
    process = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert process.returncode == 0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's switch")
def test_deterministic_is_tensorflows_own_switch_where_there_is_a_gpu(monkeypatch):
    import tensorflow as tf

    from keras_vit.finetune.reproducibility import fix_order_of_operations

    asked = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: asked.append("determinism")
    )
    assert fix_order_of_operations() and not asked
    assert fix_order_of_operations(deterministic=True) and asked == ["determinism"]
