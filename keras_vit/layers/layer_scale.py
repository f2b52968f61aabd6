"""LayerScale: a learnt factor for each channel of a residual branch."""

import keras


@keras.saving.register_keras_serializable(package="keras_vit")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a learnt factor, `gamma`.

    [Touvron et al., 2021](https://arxiv.org/abs/2103.17239), section 2.2.

    Args:
        initial_value: What every factor starts from.

    Input shape:
        `(..., hidden_size)`.

    Output shape:
        The same.

    Raises:
        ValueError: If the last axis has no known size when the layer is built.

    Example:

    >>> import numpy as np
    >>> scaled = LayerScale(0.5)(np.ones((1, 2), "float32"))
    >>> keras.ops.convert_to_numpy(scaled).tolist()
    [[0.5, 0.5]]
    """

    def __init__(self, initial_value=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value
        self.supports_masking = True

    def build(self, input_shape):
        if input_shape[-1] is None:
            raise ValueError(
                "`LayerScale` learns a factor for each channel and needs their number. "
                f"Received: shape={tuple(input_shape)}"
            )
        self.gamma = self.add_weight(
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
            name="gamma",
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}
