"""The 19 tasks of VTAB-1k with 1,000 training images each: ViT's protocol (arXiv 2010.11929).

Command:
    python recipes/vtab.py --weights CHECKPOINT [--task TASK] [--data-dir TFDS_FOLDER]

    Without --task all tasks are run one after the other; their mean is the score of VTAB. --name
    NAME calls the runs NAME-TASK.

Hardware: one GPU.

Published: ViT-L/16 (ImageNet-21k), 384 px, 2,500 steps a task: 72.72 % on average (arXiv
2010.11929, table 2).

Measured: not measured.
"""

import argparse

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import VTAB_TASKS, protocol_recipe

# One setting for all tasks, but that some labels do not allow a flip or a crop.
RECIPE = protocol_recipe("vit", "vtab/caltech101")
RECIPES = {task: protocol_recipe("vit", f"vtab/{task}") for task in VTAB_TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", choices=RECIPES)
    parser.add_argument("--name")
    options, rest = parser.parse_known_args()
    results = {}
    for task in [options.task] if options.task else RECIPES:
        # A folder each.
        name = ["--name", f"{options.name}-{task}"] if options.name else []
        results[task] = run_command_line(RECIPES[task], [*rest, *name])
    if len(results) > 1:
        for task, result in results.items():
            print(f"{task:24} {result.test}")
        mean = sum(result.test.accuracy for result in results.values()) / len(results)
        print(f"{'mean':24} {100 * mean:.2f} %")


if __name__ == "__main__":
    main()
