"""What holds for the package as a whole."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_vit

PACKAGE = Path(keras_vit.__file__).parent
BACKENDS = {"tensorflow", "jax", "torch"}


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_public_names_exist():
    assert [name for name in keras_vit.__all__ if not hasattr(keras_vit, name)] == []


@pytest.mark.parametrize(
    "package", [keras_vit, keras_vit.zoo], ids=lambda package: package.__name__
)
def test_names_imported_late_are_listed_and_others_refused(package):
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'ViTB61'"):
        _ = package.ViTB61


def test_building_a_model_imports_nothing_that_reads_files_or_pictures():
    code = """
import sys, keras_vit
keras_vit.ViTTi16(num_classes=2, image_size=32)
print([name for name in sys.modules if name.startswith("keras_vit.")])
"""
    result = run_python(code, KERAS_BACKEND=keras.backend.backend())
    assert result.returncode == 0, result.stderr
    for name in ("checkpoints", "zoo.catalog", "zoo.download", "data", "finetune", "export"):
        assert f"keras_vit.{name}" not in result.stdout


def test_the_installed_version_is_the_packages():
    try:
        installed = importlib.metadata.version("keras-vit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("keras-vit is not installed here, only on the path")
    assert installed == keras_vit.__version__


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").exists()


def module_level_imports(tree):
    """Names of the packages that importing a module imports.

    Not those inside functions, nor those for type checkers alone.
    """
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_module_imports_a_backend_or_a_recipe_package(file):
    heavy = BACKENDS | {"tensorflow_datasets", "keras_cv", "sklearn", "matplotlib", "jinja2"}
    found = heavy.intersection(module_level_imports(ast.parse(file.read_text(encoding="utf-8"))))
    assert not found, f"{file} imports {found} where it is imported itself"


@pytest.mark.slow
def test_the_other_backends_are_never_imported():
    backend = keras.backend.backend()
    others = sorted(BACKENDS - {backend})
    code = f"""
import sys
for name in {others!r} + ["tensorflow_datasets", "keras_cv", "sklearn", "matplotlib", "jinja2"]:
    sys.modules[name] = None  # importing it raises ImportError
import keras_vit, keras_vit.cli
config = keras_vit.models.VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=1, mlp_dim=16, num_heads=2, num_classes=3, image_size=8
)
import numpy as np
print(keras_vit.models.vision_transformer(config)(np.zeros((2, 8, 8, 3), "uint8")).shape)
"""
    result = run_python(code, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr
    assert "2, 3" in result.stdout


def test_a_saved_model_loads_where_only_keras_vit_was_imported(tmp_path):
    config = keras_vit.models.VisionTransformerConfig(
        patch_size=4, hidden_size=16, depth=1, mlp_dim=16, num_heads=2, num_classes=3, image_size=8
    )
    keras_vit.models.vision_transformer(config).save(tmp_path / "model.keras")
    code = f"""
import keras_vit, keras
print(keras.saving.load_model({str(tmp_path / "model.keras")!r}, safe_mode=True).name)
"""
    result = run_python(code, KERAS_BACKEND=keras.backend.backend())
    assert result.returncode == 0, result.stderr


def test_imports_go_down_only(monkeypatch):
    importlinter = pytest.importorskip("importlinter.cli", reason="needs import-linter (dev)")
    repository = PACKAGE.parent
    if not (repository / "pyproject.toml").exists():
        pytest.skip("the contracts are in pyproject.toml, which is not here")
    monkeypatch.chdir(repository)
    assert importlinter.lint_imports(no_cache=True) == importlinter.EXIT_STATUS_SUCCESS
