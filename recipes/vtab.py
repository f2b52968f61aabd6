"""The 19 tasks of VTAB-1k with 1,000 training images each: ViT's protocol (arXiv 2010.11929).

Command:
    python recipes/vtab.py --weights CHECKPOINT [--task TASK] [--data-dir TFDS_FOLDER]

    Without --task all tasks are run one after the other; their mean is the score of VTAB. A task
    that cannot be run, as its images must be downloaded by hand, is listed with why, and the exit
    status is 2. --name NAME calls the runs NAME-TASK.

Hardware: one GPU.

Published: ViT-L/16 (ImageNet-21k), 384 px, 2,500 steps a task: 72.72 % on average (arXiv
2010.11929, table 2).

Measured: not measured.
"""

import argparse
import sys

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
    accuracies, rows = [], []
    for task in [options.task] if options.task else RECIPES:
        # A folder each.
        name = ["--name", f"{options.name}-{task}"] if options.name else []
        try:
            result = run_command_line(RECIPES[task], [*rest, *name])
        except SystemExit as end:
            # Without a cause it is --help, a word misspelt or a signal.
            if options.task or end.__cause__ is None:
                raise
            reason = str(end.__cause__).split("\n")[0]
            rows.append(f"{task:24} failed: {reason}")
        else:
            accuracies.append(result.test.accuracy)
            rows.append(f"{task:24} {result.test}")
    if not options.task:
        print("", *rows, sep="\n")
        if accuracies:
            mean = f"mean of {len(accuracies)}"
            print(f"{mean:24} {100 * sum(accuracies) / len(accuracies):.2f} %")
    if len(accuracies) < len(rows):
        sys.exit(2)


if __name__ == "__main__":
    main()
