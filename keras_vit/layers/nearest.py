"""The names a mistyped one may have meant."""

import difflib

MOST_LISTED = 12


def nearest_names(name, names):
    """One sentence with the names nearest to `name`, or the first of them where none is near.

    Case, `_` and `-` do not count.

    Example:

    >>> nearest_names("ViTB16", ["vit_b16", "vit_l16"])
    'Did you mean vit_b16 or vit_l16?'
    >>> nearest_names("x", ["vit_b16", "vit_l16"])
    'Known: vit_b16, vit_l16.'
    >>> nearest_names("x", [f"class {number}" for number in range(1000)])
    'Known: class 0, class 1, ..., class 11, … (1000 in all).'
    """
    names = list(names)
    by_key: dict[str, list[str]] = {}
    for known in dict.fromkeys(names):
        by_key.setdefault(_key(known), []).append(known)
    near = difflib.get_close_matches(_key(name), by_key, n=3, cutoff=0.7)
    if near:
        return f"Did you mean {' or '.join(known for key in near for known in by_key[key])}?"
    more = f", … ({len(names)} in all)" if len(names) > MOST_LISTED else ""
    return f"Known: {', '.join(names[:MOST_LISTED])}{more}."


def _key(name):
    return str(name).casefold().replace("_", "").replace("-", "")
