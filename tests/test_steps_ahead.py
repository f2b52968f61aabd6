"""Steps that begin before the last one's result is there: the same numbers, in the same order."""

import keras
import numpy as np
import pytest

from keras_vit.finetune import Recipe
from keras_vit.finetune.loop import TrainingDiverged, training_steps
from keras_vit.finetune.steps_ahead import runs_ahead

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only on JAX do steps begin ahead"
)
STEPS = 9


class RandomBatches:
    """`flawed` has no numbers."""

    def __init__(self, flawed=None):
        self.flawed = flawed

    def __getitem__(self, step):
        random = np.random.default_rng(step)
        images = random.normal(size=(8, 4)).astype("float32")
        if step == self.flawed:
            images[:] = np.nan
        return {"images": images}, random.integers(0, 3, 8).astype("int32")


def recipe(**options):
    return Recipe(
        model="vit_ti16", batch_size=8, steps=STEPS, warmup_steps=3, precision="float32",
        **{"micro_batch_size": 8, **options},
    )  # fmt: skip


def compiled():
    keras.utils.set_random_seed(0)
    inputs = {"images": keras.Input((4,), name="images")}
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(16)(inputs["images"]))
    model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def trained(settles, **options):
    """Loss, accuracy and rate of each step, weights after those that settle, and which did."""
    model, found, weights = compiled(), [], {}
    for result in training_steps(model, recipe(**options), RandomBatches(), settles=settles):
        found.append((result.step, result.loss, result.accuracy, result.learning_rate))
        assert result.waiting_seconds <= result.seconds
        if result.settled:
            variables = [*model.variables, *model.optimizer.variables]
            weights[result.step] = [variable.numpy() for variable in variables]
    return found, weights


@pytest.mark.parametrize("micro_batch_size", [8, 4])
def test_nothing_changes_but_when_results_are_handed_out(micro_batch_size):
    def each(step):
        return True

    def some(step):
        return step in (4, 5)

    found, weights = trained(each, micro_batch_size=micro_batch_size)
    ahead, settled = trained(some, micro_batch_size=micro_batch_size)
    assert list(weights) == list(range(1, STEPS + 1))
    # The last one too, whoever asks for it.
    assert list(settled) == [4, 5, STEPS]
    assert ahead == found
    for step, values in settled.items():
        for ours, theirs in zip(values, weights[step], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_whether_a_step_settles_is_asked_after_the_result_before_it():
    """A signal that comes with a result is heeded by the step that has begun, not by a later."""
    results, asked = [], []

    def settles(step):
        asked.append((step, [result.step for result in results]))
        return False

    for result in training_steps(compiled(), recipe(), RandomBatches(), settles=settles):
        results.append(result)
    assert asked[3] == (4, [1, 2, 3])
    assert [result.settled for result in results] == [False] * (STEPS - 1) + [True]


def test_a_loop_that_is_left_has_its_weights():
    model = compiled()
    steps = training_steps(model, recipe(), RandomBatches(), settles=lambda step: False)
    assert next(steps).step == 1
    steps.close()
    for variable in [*model.variables, *model.optimizer.variables]:
        assert np.isfinite(variable.numpy()).all()


def test_the_step_that_diverged_is_named():
    steps = training_steps(compiled(), recipe(), RandomBatches(4), settles=lambda step: False)
    with pytest.raises(TrainingDiverged, match="at step 5"):
        list(steps)


def test_float16_and_several_devices_wait_for_each_step():
    assert runs_ahead("mixed_bfloat16") and not runs_ahead("mixed_float16")
    devices = keras.distribution.DataParallel(devices=["cpu:0"])
    with devices.scope():
        assert not runs_ahead("mixed_bfloat16")
