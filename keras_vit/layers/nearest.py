"""The names a mistyped one may have meant."""

import difflib


def nearest_names(name, names):
    """One sentence with the names nearest to `name`, or all of them where none is near.

    Example:

    >>> nearest_names("vit_b61", ["vit_b16", "vit_l16"])
    'Did you mean vit_b16 or vit_l16?'
    >>> nearest_names("x", ["vit_b16", "vit_l16"])
    'Known: vit_b16, vit_l16.'
    """
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.7)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {', '.join(names)}."
