"""CIFAR-100, from a checkpoint trained on ImageNet-21k: ViT's protocol (arXiv 2010.11929).

Command:
    python recipes/cifar100.py --weights CHECKPOINT [--data-dir TFDS_FOLDER]

    With --image-size the resize size keeps its proportion: 448 for 384 px, 261 for 224 px.

Hardware: one GPU.

Published: ViT-B/16 (ImageNet-21k), 384 px, 500 steps with a warm-up of 50: 89.17 %; 1,000 steps
with a warm-up of 100: 91.15 %; 10,000 steps with a warm-up of 500: 92.06 % (README of
google-research/vision_transformer).

Measured: not measured.
"""

import dataclasses

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import protocol_recipe

RECIPE = dataclasses.replace(protocol_recipe("vit", "cifar100", budget="standard"), name="cifar100")

if __name__ == "__main__":
    run_command_line(RECIPE)
