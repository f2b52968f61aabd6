"""What all tests share: quiet logs, a seed each, and the folder of real data."""

import os
from pathlib import Path

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As `import keras_vit` sets it, which comes later here.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import hypothesis
import keras
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# The same examples in every run; machines under load need more time than a deadline gives.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, alone or in the suite."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, 8 x 8 pixels."""
    from keras_vit.data import load_data

    return load_data("digits")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, weights and reference figures; without it the test is skipped."""
    folder = REPOSITORY / os.environ.get("KERAS_VIT_SHARED", "../shared")
    if not folder.is_dir():
        pytest.skip(
            f"needs the shared folder of data and weights, not found at {folder}; "
            "say where it is with KERAS_VIT_SHARED"
        )
    return folder.resolve()
