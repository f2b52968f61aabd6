"""The learning rate of each step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vit.finetune import Recipe, learning_rate


def reference(steps, base, warmup_steps):
    """google-research/vision_transformer's `create_learning_rate_schedule`, in NumPy."""
    step = np.arange(steps)
    progress = np.clip((step - warmup_steps) / float(steps - warmup_steps), 0.0, 1.0)
    rate = base * 0.5 * (1.0 + np.cos(np.pi * progress))
    return rate * np.minimum(1.0, step / warmup_steps) if warmup_steps else rate


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 99])
def test_equals_the_reference_over_100_steps(warmup_steps):
    recipe = Recipe(steps=100, warmup_steps=warmup_steps, learning_rate=0.03)
    rates = [learning_rate(step, recipe) for step in range(100)]
    np.testing.assert_allclose(rates, reference(100, 0.03, warmup_steps), rtol=1e-12, atol=1e-16)


@given(st.integers(1, 400), st.floats(1e-6, 10.0), st.data())
def test_rises_then_falls_within_bounds(steps, base, data):
    warmup_steps = data.draw(st.integers(0, steps))
    recipe = Recipe(steps=steps, warmup_steps=warmup_steps, learning_rate=base)
    rates = np.array([learning_rate(step, recipe) for step in range(steps)])
    assert (rates >= 0).all() and (rates <= base).all()
    assert (np.diff(rates[: warmup_steps + 1]) > 0).all()
    assert (np.diff(rates[warmup_steps:]) < 0).all()


def test_ends_at_zero():
    recipe = Recipe(steps=50, warmup_steps=5)
    assert learning_rate(50, recipe) == 0.0
    assert learning_rate(0, recipe) == 0.0
