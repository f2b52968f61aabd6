"""The whole line on trained weights and photographs, by the commands a user types."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import REPOSITORY

from keras_vit.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="exports need the TensorFlow backend"
    ),
]

AUGREG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"

# Runs where neither keras nor keras_vit can be imported.
CONSUMER = """
import json, sys
sys.modules["keras"] = sys.modules["keras_vit"] = None
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
files = sys.argv[2:]
answer = serve(image_bytes=tf.constant([open(file, "rb").read() for file in files]))
print(json.dumps([name.decode() for name in answer["classes"][:, 0].numpy()]))
"""


@pytest.mark.parametrize(("name", "percent"), [(AUGREG, 83.2), ("deit_tiny_patch16_224", 80.0)])
def test_accuracy_on_the_imagenet_samples(shared, capsys, name, percent):
    """Within 0.8 points (two of 250 images) of what timm gets."""
    labels = shared / "data" / "imagenet_samples" / "labels.csv"
    assert main(["evaluate", str(shared / "weights" / name), "--data", str(labels)]) == 0
    found = float(re.search(r"top-1\s+([\d.]+)%", capsys.readouterr().out)[1])
    assert abs(found - percent) <= 0.8 + 1e-9


def test_the_exported_model_answers_as_predict_does(shared, capsys, tmp_path):
    weights = str(shared / "weights" / AUGREG)
    files = sorted(map(str, (shared / "data" / "imagenet_samples").glob("*.jpg")))[::12][:20]
    assert main(["predict", "--model", weights, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    predicted = [lines[index + 1].split("%")[1].strip() for index in range(0, len(lines), 6)]
    assert main(["export", "--model", weights, "--output", str(tmp_path / "vit")]) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    consumer = subprocess.run(
        [sys.executable, "-c", CONSUMER, folder, *files], capture_output=True, text=True, check=True
    )
    assert len(predicted) == 20
    assert json.loads(consumer.stdout) == predicted


def test_a_few_steps_on_cifar10_beat_chance_by_far(shared, tmp_path, monkeypatch):
    """The recipe's own file and command, shrunk; the head starts at zero."""
    monkeypatch.setenv("KERAS_VIT_CACHE", str(tmp_path / "cache"))
    recipe = [sys.executable, "recipes/cifar10.py", "--output", str(tmp_path)]
    options = ["--weights", shared / "weights" / AUGREG, "--data-dir", shared / "data" / "tfds"]
    options += ["--train-images", "400", "--test-images", "200", "--image-size", "64"]
    options += ["--steps", "30", "--batch-size", "32", "--warmup-steps", "5"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [*recipe, *map(str, options)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)
    result = json.loads((tmp_path / "cifar10" / "result.json").read_text())
    assert result["test"]["accuracy"] > 0.3
    assert np.isfinite(result["images_per_second"])
