"""Checks of SavedModels for a stock model server: each finding on a small model that has it."""

import json
import shutil

import keras
import numpy as np
import pytest

from keras_vit.export import export_saved_model
from keras_vit.models import VisionTransformerConfig, vision_transformer
from keras_vit.serving.files import read_saved_model
from keras_vit.serving.model_checks import check_saved_model
from keras_vit.serving.prediction_log import WarmupRequest, write_warmup_requests
from keras_vit.serving.static_checks import serving_operations

tf = pytest.importorskip("tensorflow", reason="a SavedModel needs TensorFlow")

STATIC = ["signatures", "batch axis", "types", "operations", "XLA", "Python functions"]
STATIC += ["assets", "variables", "warm-up file"]
CHECKS = ["readable", *STATIC, "loads", "warm-up", "batches", "mixed sizes", "bad image"]
ROWS = tf.TensorSpec((None, 4), tf.float32, name="x")
IMAGES = tf.TensorSpec((None,), tf.string, name="image_bytes")


def save(folder, function=lambda x, w: {"y": x * w}, spec=ROWS, **options):
    """A SavedModel of one function of its input and of a variable."""
    module = tf.Module()
    module.w = tf.Variable(2.0)
    traced = tf.function(lambda x: function(x, module.w), autograph=False, **options)
    signatures = {"serving_default": traced.get_concrete_function(spec)}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


def verdicts(folder):
    found = check_saved_model(folder)
    assert [verdict.check for verdict in found] == CHECKS
    return {verdict.check: verdict for verdict in found}


def check_fails(folder, check, message, *others):
    """That one check fails, with the message, and that nothing of the model is then run."""
    found = verdicts(folder)
    assert message in found[check].detail, found[check]
    failed = [name for name in ("readable", *STATIC) if not found[name].passed]
    assert failed == sorted({check, *others}, key=CHECKS.index)
    for name in CHECKS[CHECKS.index("loads") :]:
        assert not found[name].passed
        assert found[name].detail == f"not run, because of: {', '.join(failed)}"


def edit(folder, change):
    """Changes the graph of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    return folder


def add_warmup(folder, *requests):
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    write_warmup_requests(path, requests, model_name="m")
    return path


def good_request(**changes):
    fields = {"kind": "predict_log", "signature": "serving_default"}
    return WarmupRequest(**{**fields, "inputs": {"x": np.ones((2, 4), "float32")}, **changes})


def test_a_small_model_passes_and_what_does_not_apply_says_so(tmp_path):
    folder = save(tmp_path / "1")
    before = sorted(path for path in tmp_path.rglob("*"))
    found = verdicts(folder)
    assert all(verdict.passed for verdict in found.values()), found
    for name in ("assets", "warm-up file", "warm-up", "mixed sizes", "bad image"):
        assert found[name].detail.startswith("does not apply: ")
    assert found["batches"].detail == "1 and 3 rows: serving_default"
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is exported on TensorFlow"
)
@pytest.mark.parametrize("on_error", ["row", "fail"])
def test_an_export_passes_every_check(tmp_path, on_error):
    config = VisionTransformerConfig(
        patch_size=8, hidden_size=16, depth=2, mlp_dim=32, num_heads=2, image_size=32, num_classes=3
    )
    folder = export_saved_model(
        vision_transformer(config),
        tmp_path / "pets",
        class_names=["cat", "dog", "ox"],
        on_error=on_error,
        attention=True,
    )
    found = verdicts(folder)
    assert all(verdict.passed for verdict in found.values()), found
    names = "serving_default, attention, classify, embed, pixels"
    assert found["signatures"].detail == names
    assert found["warm-up"].detail == "10 requests answered"
    assert found["batches"].detail == f"1 and 3 rows: {names}"
    if on_error == "row":
        expected = "between two good images: serving_default, attention, classify, embed"
    else:
        expected = "exported with on_error='fail'"
    assert expected in found["bad image"].detail


def test_control_flow_tables_and_assets_are_known_to_the_server(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    module = tf.Module()
    initializer = tf.lookup.TextFileInitializer(
        tf.saved_model.Asset(str(tmp_path / "names.txt")),
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
    )
    module.initializer = initializer
    module.table = tf.lookup.StaticHashTable(initializer, "?")

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64, name="x")])
    def name(x):
        x = tf.map_fn(lambda i: tf.cond(i > 5, lambda: i - 5, lambda: i), x)
        steps = tf.while_loop(lambda i: i < 3, lambda i: [i + 1], [tf.constant(0)])[0]
        tf.debugging.assert_greater(steps, 0)
        return {"name": module.table.lookup(x), "steps": tf.fill(tf.shape(x), steps)}

    folder = tmp_path / "1"
    tf.saved_model.save(module, str(folder), signatures=name)
    found = verdicts(folder)
    assert all(verdict.passed for verdict in found.values()), found
    assert found["assets"].detail == "names.txt"
    (folder / "assets" / "names.txt").unlink()
    check_fails(folder, "assets", "'names.txt' is missing")


def test_the_listed_operations_are_those_of_every_release_and_none_of_python():
    listed = serving_operations()
    assert 1000 < len(listed) < 2000
    here = {"NoOp", "Placeholder", "StatefulPartitionedCall", "If", "While", "DecodeJpeg", "_Arg"}
    assert here <= listed
    assert not {"PyFunc", "EagerPyFunc", "XlaLaunch", "NcclAllReduce", "TPUExecute"} & listed


def test_a_missing_model(tmp_path):
    found = verdicts(tmp_path / "nothing")
    assert not any(verdict.passed for verdict in found.values())
    assert "saved_model.pb is missing" in found["readable"].detail
    assert found["operations"].detail == "not run, because of: readable"


def test_the_folder_above_the_versions_is_named_as_such(tmp_path):
    save(tmp_path / "12")
    assert f"such as {tmp_path / '12'}" in verdicts(tmp_path)["readable"].detail


@pytest.mark.parametrize("length", [0, 1, 300, -1])
def test_a_truncated_graph(tmp_path, length):
    path = save(tmp_path / "1") / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:length])
    found = verdicts(tmp_path / "1")
    assert not found["readable"].passed and "saved_model.pb" in found["readable"].detail


def test_a_graph_without_the_serve_tag(tmp_path):
    folder = save(tmp_path / "1")
    edit(folder, lambda graph: graph.meta_info_def.tags.append("train"))
    assert "the one tag 'serve'" in verdicts(folder)["readable"].detail


def test_a_model_without_signatures(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "1"))
    check_fails(tmp_path / "1", "signatures", "no signatures")


def set_method(name):
    def change(graph):
        graph.signature_def["serving_default"].method_name = name

    return change


def test_a_method_that_the_server_does_not_know(tmp_path):
    folder = edit(save(tmp_path / "1"), set_method("tensorflow/serving/guess"))
    check_fails(folder, "signatures", "'tensorflow/serving/guess' is none of")


def test_a_classifier_with_other_names_than_classify_asks_for(tmp_path):
    folder = edit(save(tmp_path / "1"), set_method("tensorflow/serving/classify"))
    check_fails(folder, "signatures", "one string input 'inputs'; found ['x']")


def test_a_signature_whose_tensor_is_not_in_the_graph(tmp_path):
    def change(graph):
        graph.signature_def["serving_default"].outputs["y"].name = "gone:0"

    check_fails(edit(save(tmp_path / "1"), change), "signatures", "'gone:0', which the graph lacks")


@pytest.mark.parametrize("shape", [(3, 4), ()], ids=str)
def test_an_input_whose_first_axis_is_not_the_batch(tmp_path, shape):
    folder = save(tmp_path / "1", spec=tf.TensorSpec(shape, tf.float32, name="x"))
    check_fails(folder, "batch axis", f"input 'x' of 'serving_default' has the shape {shape}")


def test_an_output_of_any_rank(tmp_path):
    spec = tf.TensorSpec(None, tf.float32, name="x")
    check_fails(save(tmp_path / "1", spec=spec), "batch axis", "has the shape any rank")


def test_a_type_that_json_does_not_have(tmp_path):
    folder = save(tmp_path / "1", lambda x, w: {"y": tf.cast(x * w, tf.bfloat16)})
    check_fails(folder, "types", "output 'y' of 'serving_default' is bfloat16")


def test_a_python_function(tmp_path):
    def call_python(x, w):
        y = tf.numpy_function(lambda value: value * 2, [x], tf.float32)
        return {"y": tf.ensure_shape(y, (None, 4)) * w}

    folder = save(tmp_path / "1", call_python)
    check_fails(folder, "Python functions", "Write them with", "operations")


def test_a_function_that_must_be_compiled(tmp_path):
    @tf.function(jit_compile=True)
    def compiled(x):
        return x + 1.0

    folder = save(tmp_path / "1", lambda x, w: {"y": compiled(x) * w})
    check_fails(folder, "XLA", "Export without jit_compile=True")


def test_a_function_that_says_so_itself(tmp_path):
    def change(graph):
        graph.graph_def.library.function[0].attr["_XlaMustCompile"].b = True

    check_fails(edit(save(tmp_path / "1"), change), "XLA", "these must be compiled: function '")


def test_an_operation_of_another_library(tmp_path):
    def change(graph):
        graph.graph_def.node.add(name="mine", op="SentencepieceOp")

    message = "does not have: SentencepieceOp ('mine' in the graph)"
    check_fails(edit(save(tmp_path / "1"), change), "operations", message)


def test_an_operation_of_another_library_in_a_function(tmp_path):
    def change(graph):
        graph.graph_def.library.function[0].node_def.add(name="mine", op="SentencepieceOp")

    message = "SentencepieceOp ('mine' in function "
    check_fails(edit(save(tmp_path / "1"), change), "operations", message)


def test_an_asset_outside_of_the_folder(tmp_path):
    def change(graph):
        graph.asset_file_def.add(filename="../../secret").tensor_info.name = "x:0"

    (tmp_path / "secret").write_text("x")
    folder = edit(save(tmp_path / "1"), change)
    check_fails(folder, "assets", "'../../secret' lies outside of the folder assets")


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
def test_missing_variables(tmp_path, name):
    folder = save(tmp_path / "1")
    (folder / "variables" / name).unlink()
    check_fails(folder, "variables", "variables/variables")


def test_a_changed_weight_fails_its_checksum(tmp_path):
    path = save(tmp_path / "1") / "variables" / "variables.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[1] ^= 1
    path.write_bytes(content)
    check_fails(tmp_path / "1", "variables", "damaged or not complete")


def test_a_truncated_shard(tmp_path):
    path = save(tmp_path / "1") / "variables" / "variables.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:3])
    check_fails(tmp_path / "1", "variables", "damaged or not complete")


def test_variables_of_another_model_do_not_load(tmp_path):
    folder, other = save(tmp_path / "1"), tf.Module()
    tf.saved_model.save(other, str(tmp_path / "2"))
    shutil.rmtree(folder / "variables")
    shutil.copytree(tmp_path / "2" / "variables", folder / "variables")
    found = verdicts(folder)
    assert not found["loads"].passed and "not found in checkpoint" in found["loads"].detail
    assert found["batches"].detail == "not run, because of: loads"


def test_warmup_requests_are_replayed(tmp_path):
    folder = save(tmp_path / "1")
    add_warmup(folder, good_request(), good_request(signature=""))
    found = verdicts(folder)
    assert found["warm-up file"].detail == "2 predict_log" and found["warm-up file"].passed
    assert found["warm-up"].detail == "2 requests answered" and found["warm-up"].passed


def test_a_warmup_request_that_the_model_refuses(tmp_path):
    def picky(x, w):
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 10.0)]):
            return {"y": x * w}

    folder = save(tmp_path / "1", picky)
    inputs = {"x": np.full((2, 4), 11, "float32")}
    add_warmup(folder, good_request(), good_request(inputs=inputs))
    found = verdicts(folder)
    assert not found["warm-up"].passed and "fails for 2 rows" in found["warm-up"].detail
    assert found["warm-up file"].passed


@pytest.mark.parametrize("cut", [1, 5, -1])
def test_a_truncated_warmup_file(tmp_path, cut):
    folder = save(tmp_path / "1")
    path = add_warmup(folder, good_request(), good_request())
    path.write_bytes(path.read_bytes()[:cut])
    check_fails(folder, "warm-up file", "must be a whole TFRecord file")


def test_a_warmup_record_that_is_no_request(tmp_path):
    folder = save(tmp_path / "1")
    path = add_warmup(folder)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff no message")
    check_fails(folder, "warm-up file", "Record 0")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"signature": "gone"}, "signature 'gone' is none of serving_default"),
        ({"inputs": {"z": np.ones((1, 4), "float32")}}, "inputs ['z'], not ['x']"),
        ({"inputs": {"x": np.ones((1, 5), "float32")}}, "'x' is float32 (1, 5), not float32"),
        ({"inputs": {"x": np.ones((1, 4), "int32")}}, "'x' is int32 (1, 4), not float32"),
        ({"inputs": {"x": np.ones((0, 4), "float32")}}, "'x' is float32 (0, 4), not float32"),
        (
            {"kind": "classify_log", "inputs": {"inputs": np.array([b""], dtype=object)}},
            "classify_log for 'serving_default', whose method is another",
        ),
    ],
)
def test_a_warmup_request_that_does_not_suit_the_signatures(tmp_path, changes, message):
    folder = save(tmp_path / "1")
    add_warmup(folder, good_request(), good_request(**changes))
    check_fails(folder, "warm-up file", f"record 1: {message}")


def test_a_warmup_request_larger_than_the_servers_batches(tmp_path):
    folder = save(tmp_path / "1")
    add_warmup(folder, good_request(inputs={"x": np.ones((8, 4), "float32")}))
    batching = tmp_path / "batching_parameters.txt"
    batching.write_text("max_batch_size { value: 8 }")
    assert verdicts(folder)["warm-up file"].passed
    batching.write_text("max_batch_size { value: 7 }")
    check_fails(folder, "warm-up file", "A warm-up request of 8 rows is larger than the batches of")


def test_more_warmup_records_than_a_server_takes(tmp_path):
    folder = save(tmp_path / "1")
    add_warmup(folder, *[good_request()] * 1001)
    check_fails(folder, "warm-up file", "1001 records; a server takes 1000")


def test_outputs_that_do_not_follow_the_batch(tmp_path):
    def first_row(x, w):
        return {"y": tf.where(True, x[:1] * w, x)[: tf.minimum(tf.shape(x)[0], 1)]}

    found = verdicts(save(tmp_path / "1", first_row))
    assert found["loads"].passed and not found["batches"].passed
    assert "gives 'y' of shape (1, 4) for 3 rows" in found["batches"].detail


def test_outputs_that_are_not_numbers(tmp_path):
    found = verdicts(save(tmp_path / "1", lambda x, w: {"y": x * w * float("nan")}))
    assert "not a number" in found["batches"].detail and not found["batches"].passed


def test_strings_that_nobody_can_guess_are_named(tmp_path):
    spec = tf.TensorSpec((None,), tf.string, name="text")
    folder = save(tmp_path / "1", lambda x, w: {"y": tf.strings.length(x)}, spec)
    found = verdicts(folder)
    assert all(verdict.passed for verdict in found.values())
    assert found["batches"].detail == (
        "does not apply: what serving_default takes cannot be guessed"
    )


def means(encoded, w):
    """The mean colour of each image."""

    def mean(image):
        return tf.reduce_mean(tf.cast(tf.io.decode_jpeg(image, channels=3), tf.float32), (0, 1))

    return {"y": tf.map_fn(mean, encoded, fn_output_signature=tf.float32) * w}


def safe_means(encoded, w):
    """The same where an image that is not whole answers with zeros and an error."""
    begins = tf.strings.substr(tf.strings.join([encoded, "...."]), 0, 4)
    ends = tf.strings.substr(tf.strings.join(["..", encoded]), -2, 2)
    size = tf.strings.length(encoded)
    is_png = tf.equal(begins, b"\x89PNG") & (size > 500)
    whole = (is_png | tf.equal(ends, b"\xff\xd9")) & (size < 20_000)
    good = tf.fill(tf.shape(encoded), tf.io.encode_jpeg(tf.zeros((8, 8, 3), tf.uint8)))
    outputs = means(tf.where(whole, encoded, good), w)
    return {
        "y": tf.where(whole[:, None], outputs["y"], 0.0),
        "error": tf.where(whole, "", "not whole"),
    }


def test_a_bad_image_that_fails_the_batch(tmp_path):
    found = verdicts(save(tmp_path / "1", means, IMAGES))
    assert found["mixed sizes"].passed and "in one batch" in found["mixed sizes"].detail
    assert not found["bad image"].passed
    assert "fails the whole batch" in found["bad image"].detail
    (tmp_path / "1" / "signatures.json").write_text(json.dumps({"on_error": "fail"}))
    found = verdicts(tmp_path / "1")
    assert found["bad image"].passed and "on_error='fail'" in found["bad image"].detail


def test_a_bad_image_that_answers_for_itself(tmp_path):
    found = verdicts(save(tmp_path / "1", safe_means, IMAGES))
    assert all(verdict.passed for verdict in found.values()), found
    assert "between two good images" in found["bad image"].detail


def test_a_bad_image_that_changes_its_neighbours(tmp_path):
    def centred(encoded, w):
        outputs = safe_means(encoded, w)
        centre = tf.reduce_min(outputs["y"], axis=0, keepdims=True)
        return {**outputs, "y": outputs["y"] - centre}

    found = verdicts(save(tmp_path / "1", centred, IMAGES))
    assert not found["bad image"].passed and "answers 'y' otherwise" in found["bad image"].detail
    assert not found["mixed sizes"].passed and "otherwise than alone" in found["mixed sizes"].detail


def test_a_bad_image_without_an_error_of_its_own(tmp_path):
    def silent(encoded, w):
        outputs = safe_means(encoded, w)
        return {**outputs, "error": tf.fill(tf.shape(encoded), "")}

    found = verdicts(save(tmp_path / "1", silent, IMAGES))
    assert "says no error for empty" in found["bad image"].detail


@pytest.mark.parametrize("flaw", ["none", "polite", "loud"])
def test_an_export_marks_bad_images_in_classify_too(tmp_path, flaw):
    from small_served_models import write_model

    def keep_classify(graph):
        for name in {*graph.signature_def} - {"classify", "__saved_model_init_op"}:
            del graph.signature_def[name]

    folder = write_model(tmp_path / "1", flaw)
    edit(folder, keep_classify)
    assert verdicts(folder)["bad image"].passed
    (folder / "signatures.json").write_text(json.dumps({"on_error": "row"}))
    found = verdicts(folder)["bad image"]
    assert found.passed == (flaw == "none")
    assert found.passed or found.detail == "'classify' answers empty as if it were a picture"


def test_a_good_image_that_is_refused(tmp_path):
    def strict(encoded, w):
        return {**safe_means(encoded, w), "error": tf.fill(tf.shape(encoded), "no")}

    found = verdicts(save(tmp_path / "1", strict, IMAGES))
    assert "says of a good image: b'no'" in found["batches"].detail


def test_reading_runs_nothing(tmp_path):
    """Reading the signatures of a model that cannot even be loaded."""

    def change(graph):
        graph.graph_def.node.add(name="mine", op="SentencepieceOp")

    graph = read_saved_model(edit(save(tmp_path / "1"), change))
    assert "serving_default" in graph.signature_def
