"""ImageNet-1k, from a masked autoencoder: MAE's fine-tuning protocol (arXiv 2111.06377).

Command:
    python recipes/imagenet2012.py --weights MAE_CHECKPOINT [--data-dir TFDS_FOLDER]

    ViT-L and ViT-H have other values, which come with their checkpoints, see docs/recipes.md.

Hardware: GPUs; ViT-B took the authors 7 hours on 32 V100 (FINETUNE.md of facebookresearch/mae).

Published: ViT-B/16, 224 px, 100 epochs: 83.66 %, 83.57 % on average of four seeds (FINETUNE.md).

Measured: not measured.
"""

import dataclasses

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import protocol_recipe

RECIPE = dataclasses.replace(protocol_recipe("mae", "imagenet2012"), name="imagenet2012")

if __name__ == "__main__":
    run_command_line(RECIPE)
