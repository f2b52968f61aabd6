"""Oxford Flowers, 102 kinds with ten training images each: big_vision's transfer protocol.

Command:
    python recipes/oxford_flowers102.py --weights CHECKPOINT [--data-dir TFDS_FOLDER]

Hardware: one GPU.

Published: ViT-B/32 (ImageNet-21k, AugReg), 384 px, 500 steps: 99.43 % (head of big_vision's
configs/transfer.py); ViT-B/16 (ImageNet-21k), 384 px, 500 steps: 99.38 % (arXiv 2010.11929,
table 5).

Measured: not measured.
"""

import dataclasses

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import protocol_recipe

RECIPE = dataclasses.replace(
    protocol_recipe("big_vision", "oxford_flowers102"), name="oxford_flowers102"
)

if __name__ == "__main__":
    run_command_line(RECIPE)
