"""The real TensorFlow Serving, where there is one: TF_MODEL_SERVER names its binary.

`TF_MODEL_SERVER=/usr/bin/tensorflow_model_server pytest tests/test_model_server.py` runs these;
without it they are skipped, as they are in CI.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import keras
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")
pytest.importorskip(
    "tensorflow_serving", reason="gRPC needs the official stubs: pip install tensorflow-serving-api"
)
if keras.backend.backend() != "tensorflow":
    pytest.skip("a SavedModel is exported on the TensorFlow backend", allow_module_level=True)

from test_export import NAMES, small_model

from keras_vit.export import export_saved_model
from keras_vit.serving.client import RestClient, connect
from keras_vit.serving.pictures import good_pictures
from keras_vit.serving.serve_check import serve_check

# A model server that starts, warms up and switches within this is not slow, but broken.
PATIENCE = 120

MODELS_CONFIG = """
model_config_list {{
  config {{
    name: "pets"
    base_path: "{folder}"
    model_platform: "tensorflow"
    model_version_policy {{ {policy} }}
  }}
}}
"""
LATEST = "latest { num_versions: 1 }"


@pytest.fixture(scope="module")
def binary():
    file = os.environ.get("TF_MODEL_SERVER")
    if not file:
        pytest.skip(
            "needs TensorFlow Serving's tensorflow_model_server; say where it is with "
            "TF_MODEL_SERVER"
        )
    if not Path(file).is_file():
        pytest.fail(f"TF_MODEL_SERVER names {file}, which is not a file")
    return file


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def model_server(binary, folder, log, *options):
    """A running server of the models.config in `folder`; its addresses of gRPC and REST."""
    grpc_port, rest_port = free_port(), free_port()
    command = [
        binary,
        f"--port={grpc_port}",
        f"--rest_api_port={rest_port}",
        f"--model_config_file={folder / 'models.config'}",
        "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=1",
        *options,
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield f"127.0.0.1:{grpc_port}", f"127.0.0.1:{rest_port}", process
        finally:
            process.terminate()
            process.wait(PATIENCE)


def wait_for(versions, rest_address, process, log):
    """Waits until these versions, and no others, are available."""
    deadline = time.monotonic() + PATIENCE
    seen = None
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        with contextlib.suppress(OSError, RuntimeError), RestClient(rest_address) as client:
            states = client.status("pets")
            seen = {version for version, state in states.items() if state == "AVAILABLE"}
        if seen == versions:
            return
        time.sleep(0.2)
    pytest.fail(f"{seen} instead of {versions}: {log.read_text(errors='replace')[-4000:]}")


def write_config(folder, policy=LATEST):
    partial = folder / "models.config.partial"
    partial.write_text(MODELS_CONFIG.format(folder=folder / "pets", policy=policy))
    partial.replace(folder / "models.config")


def logits(address):
    with connect(address) as client:
        signature = client.signatures("pets")["serving_default"]
        return client.predict("pets", signature, {"image_bytes": [good_pictures()["PNG"]]})[
            "logits"
        ]


def test_the_real_server_warms_up_batches_switches_and_goes_back(binary, tmp_path):
    model = small_model()
    first = export_saved_model(model, tmp_path / "pets", class_names=NAMES)
    # The export's own, for what it says is to be read by the real server.
    batching = tmp_path / "pets" / "batching_parameters.txt"
    write_config(tmp_path)
    log = tmp_path / "server.log"
    options = ["--enable_batching"]
    if batching.exists():
        options.append(f"--batching_parameters_file={batching}")
    with model_server(binary, tmp_path, log, *options) as (grpc_address, rest_address, process):
        wait_for({1}, rest_address, process, log)
        if (first / "assets.extra" / "tf_serving_warmup_requests").exists():
            assert "warmup" in log.read_text(errors="replace").lower()
        addresses = [grpc_address, rest_address]
        report = serve_check(addresses, model="pets", requests=200, clients=8, batch_size=2)
        assert report.passed, str(report)
        before = logits(rest_address)

        weights = [-weight for weight in model.get_weights()]
        model.set_weights(weights)
        export_saved_model(model, tmp_path / "pets", class_names=NAMES)
        wait_for({2}, rest_address, process, log)
        assert np.abs(logits(rest_address) - before).max() > 1e-2
        np.testing.assert_allclose(logits(grpc_address), logits(rest_address), atol=1e-4)

        # Back by the configuration, as docs/serving.md says.
        write_config(tmp_path, "specific { versions: 1 }")
        wait_for({1}, rest_address, process, log)
        np.testing.assert_allclose(logits(rest_address), before, atol=1e-4)
        assert serve_check(addresses, model="pets", requests=0).passed
        assert process.poll() is None


def test_the_real_server_reads_the_models_config_of_the_export(binary, tmp_path):
    folder = tmp_path / "pets"
    export_saved_model(small_model(), folder, class_names=NAMES)
    config = folder / "models.config"
    if not config.exists():
        pytest.skip("this export writes no models.config")
    # It is written for a container, where the model lies at /models/pets.
    text = config.read_text()
    assert "/models/pets" in text
    (tmp_path / "models.config").write_text(text.replace("/models/pets", str(folder)))
    log = tmp_path / "server.log"
    with model_server(binary, tmp_path, log) as (_, rest_address, process):
        wait_for({1}, rest_address, process, log)
        assert serve_check(rest_address, model="pets", requests=20).passed


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(binary, tmp_path):
    export_saved_model(small_model(), tmp_path / "pets", class_names=NAMES)
    write_config(tmp_path)
    log = tmp_path / "server.log"
    # Else it tries five times more, a minute apart, before it gives the version up.
    once = "--max_num_load_retries=0"
    with model_server(binary, tmp_path, log, once) as (_, rest_address, process):
        wait_for({1}, rest_address, process, log)
        broken = tmp_path / "pets" / ".2"
        shutil.copytree(tmp_path / "pets" / "1", broken)
        (broken / "saved_model.pb").write_bytes(b"\xff\xff")
        broken.rename(tmp_path / "pets" / "2")
        deadline = time.monotonic() + PATIENCE
        with RestClient(rest_address) as client:
            while client.status("pets").get(2) != "END" and time.monotonic() < deadline:
                time.sleep(0.2)
            assert client.status("pets") == {1: "AVAILABLE", 2: "END"}
        assert serve_check(rest_address, model="pets", requests=0).passed
