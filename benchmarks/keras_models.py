"""Steps of Keras models: keras_vit's and keras-hub's, on TensorFlow and JAX."""

import keras
import numpy as np

import keras_vit
from benchmarks.inputs import images_of, labels_of
from benchmarks.worker import Step
from keras_vit.finetune import Recipe
from keras_vit.finetune.adaptation import prepare_for_training
from keras_vit.finetune.loop import compile_for_training
from keras_vit.finetune.precision import find_accelerator
from keras_vit.finetune.report import peak_memory
from keras_vit.finetune.steps_ahead import StepsAhead, runs_ahead

# Dtype of the table → dtype policy of Keras in training. For inference models are converted.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
LEARNING_RATE = 0.01


def build_keras_vit(job, policy):
    """The model of keras_vit with the weights of all contenders."""
    model = keras_vit.create(
        job["model"],
        image_size=job["image_size"],
        include_preprocessing=False,
        dtype=policy,
        **job.get("fields", {}),
    )
    if job.get("weights"):
        keras_vit.load_checkpoint(model, f"{job['weights']}/timm", accept=("preprocessing",))
    return model


def build_keras_hub(job, policy):
    """keras-hub's classifier of the same architecture with the same weights."""
    import keras_hub

    config = config_of(job)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(*config.image_size, 3),
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=config.mlp_dim,
        layer_norm_epsilon=config.layer_norm_epsilon,
        dtype=policy,
    )
    model = keras_hub.models.ViTImageClassifier(backbone, num_classes=config.num_classes)
    if job.get("weights"):
        assign_keras_hub(model, np.load(f"{job['weights']}/keras_vit.npz"))
    return model


def config_of(job):
    """The architecture of a job."""
    row = keras_vit.models.VARIANTS[job["model"]]
    return keras_vit.models.VisionTransformerConfig(
        **{**row, "image_size": job["image_size"], **job.get("fields", {})}
    )


def assign_keras_hub(model, weights):
    """Gives keras-hub's ViT the weights of keras_vit's, by their paths; every one must fit."""
    values = dict(_keras_hub_values(weights))
    variables = {variable.path: variable for variable in model.weights}
    if variables.keys() != values.keys():
        raise ValueError(
            f"keras-hub's variables are not those expected: {variables.keys() ^ values.keys()}"
        )
    for path, value in values.items():
        variables[path].assign(value.reshape(_same_size(variables[path].shape, value, path)))


def _same_size(shape, value, path):
    if np.prod(shape) != value.size:
        raise ValueError(f"keras-hub's {path} has shape {shape}, keras_vit's {value.shape}")
    return shape


# Layer of keras_vit's block → that of keras-hub's.
_BLOCK = {
    "attention_norm": "ln_1",
    "attention/projection": "mha/attention_output",
    "mlp_norm": "ln_2",
    "mlp/expansion": "mlp/dense_1",
    "mlp/projection": "mlp/dense_2",
}
_REST = {
    "patch_encoder/class_token": "vit_patching_and_embedding/class_token",
    "patch_encoder/position_embedding": (
        "vit_patching_and_embedding/position_embedding/embeddings"
    ),
    "patch_encoder/projection": "vit_patching_and_embedding/patch_embedding",
    "encoder_norm": "vit_encoder/ln",
    "head": "predictions",
}


def _keras_hub_values(weights):
    for name, value in weights.items():
        layer, _, part = name.rpartition("/")
        if not name.startswith("block_"):
            yield (_REST[name] if name in _REST else f"{_REST[layer]}/{part}"), value
            continue
        block, _, layer = layer.partition("/")
        theirs = f"vit_encoder/transformer_block_{int(block.removeprefix('block_')) + 1}"
        if layer != "attention/query_key_value":
            yield f"{theirs}/{_BLOCK[layer]}/{part}", value
            continue
        for name, third in zip(("query", "key", "value"), np.split(value, 3, -1), strict=True):
            yield f"{theirs}/mha/{name}/{part}", third


BUILDERS = {"keras_vit": build_keras_vit, "keras-hub": build_keras_hub}


def forward(job):
    """A forward pass, as a compiled function of the backend."""
    model, images = BUILDERS[job["library"]](job, job["dtype"]), images_of(job)
    if job["library"] == "keras_vit":
        # As `inference_function` and exports do.
        model = keras_vit.models.without_unread_tokens(model)
    function, wait, to_numpy = {"tensorflow": _tensorflow_function, "jax": _jax_function}[
        keras.backend.backend()
    ](model, images, job.get("jit_compile"))
    return Step(
        launch=function,
        outputs=lambda: to_numpy(function()),
        wait=wait,
        peak_memory=_accelerator_memory(),
        facts=_facts(),
    )


def _tensorflow_function(model, images, jit_compile):
    import tensorflow as tf

    if jit_compile is None:
        function = keras_vit.models.inference_function(model)
    else:
        function = tf.function(
            lambda batch: model(batch, training=False), autograph=False, jit_compile=jit_compile
        )
    batch = tf.constant(images)
    # Reading the result is how one waits for a GPU.
    return lambda: function(batch), lambda result: result.numpy(), _as_float32


def _jax_function(model, images, jit_compile):
    import jax

    def call(trainable, non_trainable, batch):
        return model.stateless_call(trainable, non_trainable, batch, training=False)[0]

    function, batch = jax.jit(call), jax.device_put(images)
    trainable = [variable.value for variable in model.trainable_variables]
    non_trainable = [variable.value for variable in model.non_trainable_variables]

    def launch():
        return function(trainable, non_trainable, batch)

    if find_accelerator().kind != "cpu":
        return launch, jax.block_until_ready, _as_float32
    # On a CPU JAX would begin the next pass beside this one.
    return lambda: jax.block_until_ready(launch()), jax.block_until_ready, _as_float32


def _as_float32(result):
    return keras.ops.convert_to_numpy(keras.ops.cast(result, "float32"))


def compiled_for_training(job):
    """A model as users of either library train it."""
    model = BUILDERS[job["library"]](job, POLICIES[job["dtype"]])
    if job["library"] == "keras_vit":
        recipe = Recipe(
            model=job["model"],
            optimizer="sgd",
            momentum=0.9,
            learning_rate=LEARNING_RATE,
            clip_norm=0.0,
            precision=POLICIES[job["dtype"]],
        )
        plans = prepare_for_training(model, recipe)
        model = keras_vit.models.with_even_tokens(model)
        model = keras_vit.models.without_unread_tokens(model)
        compile_for_training(model, recipe, plans)
        if "jit_compile" in job:
            model.jit_compile = job["jit_compile"]
    else:
        model.compile(
            optimizer=keras.optimizers.SGD(LEARNING_RATE, momentum=0.9),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
            jit_compile=job.get("jit_compile", "auto"),
        )
    return model


def train(job):
    """A training step: `train_on_batch`, or on JAX one that begins before the last one's end.

    As `fit` has it: there `train_on_batch` waits, and puts all weights back after each step.
    """
    model, images, labels = compiled_for_training(job), images_of(job), labels_of(job)
    if find_accelerator().kind != "cpu":
        # As a pipeline that is ahead has put them.
        images, labels = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)

    def train_on_batch():
        return model.train_on_batch(images, labels, return_dict=True)["loss"]

    def outputs():
        # Keras 3 averages the loss of all batches since the metrics were reset.
        losses = []
        for _ in range(job["steps_compared"]):
            model.reset_metrics()
            losses.append(float(train_on_batch()))
        return np.array(losses)

    ahead = StepsAhead(model)

    def begin_ahead():
        # Compiled by `outputs`, which comes first.
        return ahead.begin(images, labels)["loss"]

    is_ahead = job.get("ahead", True) and runs_ahead(POLICIES[job["dtype"]])
    return Step(
        launch=begin_ahead if is_ahead else train_on_batch,
        outputs=outputs,
        wait=float,
        peak_memory=_accelerator_memory(),
        facts=_facts(),
    )


def _accelerator_memory():
    return None if find_accelerator().kind == "cpu" else peak_memory


def _facts():
    accelerator = find_accelerator()
    return {"device": accelerator.name}
