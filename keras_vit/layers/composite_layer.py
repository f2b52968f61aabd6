"""A layer made of others, which may be frozen or quantised."""

import keras


class CompositeLayer(keras.layers.Layer):
    """A layer whose state is that of those inside it, in a saved model too.

    It makes them of `inner_options`: frozen, it would otherwise come back from its config with
    layers that train.

    `model.quantize("int8")` quantises the dense layers inside of others too. What a saved model
    tells of a layer is its config, from which it would make these anew, in floating point: files of
    quantised models could not be loaded. Here they are quantised again as soon as they are built,
    and those that train or not unlike the layer around them do so again.

    Example:

    >>> from keras_vit.layers import MLP
    >>> mlp = MLP(8)
    >>> mlp.build((None, 5, 4))
    >>> mlp.projection.quantize("int8")
    >>> sorted(mlp.get_build_config()["quantized"])
    ['projection']
    """

    @property
    def inner_options(self):
        """What each layer inside takes over: the dtype, and whether it trains."""
        return {"dtype": self.dtype_policy, "trainable": self.trainable}

    def get_build_config(self):
        config = super().get_build_config()
        apart = [path for path, layer in self._layers_by_path() if self._is_apart(layer)]
        if apart:
            config["apart"] = apart
        quantized = {
            path: keras.saving.serialize_keras_object(layer.quantization_config)
            for path, layer in self._layers_by_path()
            if layer.quantization_mode is not None
        }
        return {**config, "quantized": quantized} if quantized else config

    def build_from_config(self, config):
        super().build_from_config(config)
        if "apart" in config:
            # Those around others first, which they set as well.
            for path, layer in list(self._layers_by_path()):
                layer.trainable = self.trainable != (path in config["apart"])
        quantized = config.get("quantized", {})
        for path, layer in self._layers_by_path():
            # A layer whose dtype says it is quantised already.
            if path in quantized and layer.quantization_mode is None:
                how = keras.saving.deserialize_keras_object(quantized[path])
                layer.quantize(config=how)

    def _is_apart(self, layer):
        """Whether a layer inside is frozen where this one is not, or trains where it does not."""
        return layer.trainable != self.trainable

    def _layers_by_path(self):
        """The path within this layer of each built one inside it, however deep, and the layer."""
        for layer in self._flatten_layers(include_self=False):
            if layer.path is not None:
                yield layer.path.removeprefix(f"{self.path}/"), layer
