"""Fine-tuning: the recipe, the run and its report."""

from keras_vit.finetune.command_line import (
    parse_recipe,
    recipe_learning_rates,
    run_command_line,
    user_errors,
)
from keras_vit.finetune.comparison import compare_runs
from keras_vit.finetune.evaluation import Evaluation, evaluate, wilson_interval
from keras_vit.finetune.figures import draw_learning_curves
from keras_vit.finetune.folder import read_configuration
from keras_vit.finetune.loop import TrainingDiverged
from keras_vit.finetune.optimizer import SGD
from keras_vit.finetune.precision import resolve_precision
from keras_vit.finetune.protocols import PROTOCOLS, protocol_learning_rates, protocol_recipe
from keras_vit.finetune.recipe import Recipe, recipe_from_fields
from keras_vit.finetune.report import RunResult
from keras_vit.finetune.run import run
from keras_vit.finetune.schedule import learning_rate
from keras_vit.finetune.signals import RunInterrupted
from keras_vit.finetune.sweep import SweepResult, sweep

__all__ = [
    "PROTOCOLS",
    "SGD",
    "Evaluation",
    "Recipe",
    "RunInterrupted",
    "RunResult",
    "SweepResult",
    "TrainingDiverged",
    "compare_runs",
    "draw_learning_curves",
    "evaluate",
    "learning_rate",
    "parse_recipe",
    "protocol_learning_rates",
    "protocol_recipe",
    "read_configuration",
    "recipe_from_fields",
    "recipe_learning_rates",
    "resolve_precision",
    "run",
    "run_command_line",
    "sweep",
    "user_errors",
    "wilson_interval",
]
