"""Names of a package whose modules are imported when they are first asked for."""

import importlib
import sys


def lazy_names(package, modules):
    """`__getattr__` and `__dir__` of a package ([PEP 562](https://peps.python.org/pep-0562/)).

    Args:
        package: Its `__name__`.
        modules: Name of each module → the names that it defines; `()` where the module itself is
            the name.

    Example:

    >>> getattr_, dir_ = lazy_names("keras_vit", {"zoo.catalog": ("list_weights",)})
    >>> getattr_("list_weights").__module__
    'keras_vit.zoo.catalog'
    """
    places = {name: module for module, names in modules.items() for name in names}
    places |= {module: None for module, names in modules.items() if not names}

    def get(name):
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{places[name] or name}")
        return getattr(module, name) if places[name] else module

    def names():
        namespace = vars(sys.modules[package])
        return sorted({*namespace, *namespace["__all__"]})

    return get, names
