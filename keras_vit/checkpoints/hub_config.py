"""What the libraries' config files have in common: words of theirs for ours, and sides."""


def translated(name, value, table):
    """Our word for the `value` that a config file gives `name`.

    Args:
        name: Key of the config file.
        value: What stands there, of any type.
        table: Word of the library → ours.

    Raises:
        ValueError: If the table has no such word.

    Example:

    >>> translated("hidden_act", "gelu_new", {"gelu_new": "gelu_tanh"})
    'gelu_tanh'
    """
    if not isinstance(value, str) or value not in table:
        raise ValueError(
            f"unsupported `{name}` in the config beside the file. Expected one of "
            f"{', '.join(map(repr, table))}. Received: {name}={value!r:.100}"
        )
    return table[value]


def side(pair):
    """A pair as the libraries write it: one number for a square.

    Example:

    >>> side((16, 16)), side((16, 8))
    (16, [16, 8])
    """
    return pair[0] if pair[0] == pair[1] else list(pair)
