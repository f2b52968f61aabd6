"""Published weights by name: where they lie, what they are, and how well they do.

The facts are in `catalog.toml`; this file only reads them. What a publisher does not tell (a size,
a digest, an accuracy) is None here.
"""

import dataclasses
import fnmatch
import functools
import tomllib
import urllib.parse
from importlib import resources
from urllib.parse import unquote, urlsplit

from keras_vit.layers.nearest import nearest_names
from keras_vit.models import VARIANTS, Preprocessing

_PREPROCESSING = tuple(field.name for field in dataclasses.fields(Preprocessing))
_SAME_NETWORK = ("hidden_size", "depth")


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """One file of published weights.

    Args:
        address: Where it is published.
        size: Its length in bytes; None where the publisher does not tell.
        sha256: Its digest, 64 hexadecimal digits; None where the publisher does not tell.
    """

    address: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self):
        """The file's name, as it is stored.

        Example:

        >>> PublishedFile("https://example.org/vit/R50%2BViT-B_16.npz").name
        'R50+ViT-B_16.npz'
        """
        return unquote(urlsplit(self.address).path).rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A published result: `value` per cent of `metric` on `data`, as `source` states it."""

    data: str
    metric: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody published.

    Args:
        name: SIZE-FAMILY-DATA[-RESOLUTION], such as "b16-augreg-in21k-ft-in1k-384".
        published_name: The publisher's own, such as "vit_base_patch16_384.augreg_in21k_ft_in1k".
        variant: The model's name, as `keras_vit.create` knows it.
        family: The method's name.
        format: Format of the files: "google", "timm" or "hf".
        files: The files; those of one entry belong into one folder.
        image_size: Side of the images in pixels that the positions are for.
        num_classes: Outputs of the head; 0: there is none; None where it is not known.
        preprocessing: Scaling of pixels, and how the publisher prepares images for evaluation.
        activation: Activation of the MLPs where the files do not tell, else None.
        licence: Licence of the weights, by its SPDX name where it has one.
        gated: Whether the publisher hands the files to those alone who accepted the licence.
        parameters: Number of the published model's parameters; None where it is not known.
        accuracy: Published results, the most important first.
    """

    name: str
    published_name: str
    variant: str
    family: str
    format: str
    files: tuple[PublishedFile, ...]
    image_size: int
    preprocessing: Preprocessing
    licence: str
    num_classes: int | None = None
    activation: str | None = None
    gated: bool = False
    parameters: int | None = None
    accuracy: tuple[Accuracy, ...] = ()

    @property
    def size(self):
        """Length of all files in bytes; None where the publisher does not tell one of them."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(sizes)


@functools.cache
def read_catalog() -> dict[str, PublishedWeights]:
    """All published weights by name, in the catalog's order.

    Raises:
        ValueError: If the catalog says something twice, or something unknown.
    """
    text = resources.files("keras_vit.zoo").joinpath("catalog.toml").read_text(encoding="utf-8")
    catalog: dict[str, PublishedWeights] = {}
    for collection in tomllib.loads(text).values():
        shared = {key: value for key, value in collection.items() if key != "weights"}
        for name, own in collection["weights"].items():
            if name in catalog:
                raise ValueError(f"catalog.toml has {name} twice")
            catalog[name] = _entry(name, {**shared, **own})
    return catalog


def list_weights(pattern: str = "*") -> list[str]:
    """Names of published weights, for `weights=` of the builders.

    Args:
        pattern: Shell-style pattern.

    Example:

    >>> list_weights("b32-vit*")
    ['b32-vit-in21k', 'b32-vit-in21k-ft-in1k-384']
    """
    return sorted(fnmatch.filter(read_catalog(), pattern))


def find(name: str, variant: str | None = None) -> PublishedWeights:
    """The published weights called `name`.

    Args:
        name: One of `list_weights()`; the size may be left out where `variant` tells it. Or the
            publisher's name, as timm and the Hugging Face hub have it.
        variant: Name of the model that the weights are for; None: any.

    Raises:
        ValueError: For an unknown name, with the nearest ones, and for weights of a model of
            another width or depth.

    Example:

    >>> find("augreg-in21k", "vit_b16").name
    'b16-augreg-in21k'
    """
    catalog = read_catalog()
    found = catalog.get(name) or _by_published_name().get(name)
    if found is not None:
        if variant is not None and not _same_network(variant, found.variant):
            raise ValueError(
                f"Weights {name!r} are those of {found.variant}, which has another width or depth "
                f"than {variant}. {_weights_of(variant, catalog)}"
            )
        return found
    sized = [
        entry
        for entry in catalog.values()
        if entry.variant == variant and entry.name.partition("-")[2] == name
    ]
    if len(sized) != 1:
        raise ValueError(
            f"No published weights are called {name!r}. {nearest_names(name, catalog)} "
            f"{_weights_of(variant, catalog)}"
        )
    return sized[0]


@functools.cache
def _by_published_name():
    return {entry.published_name: entry for entry in read_catalog().values()}


def _weights_of(variant, catalog):
    names = [entry.name for entry in catalog.values() if entry.variant == variant]
    return f"Of {variant}: {', '.join(names)}." if names else "`keras_vit.list_weights()` has all."


def _same_network(variant, other):
    if variant not in VARIANTS or other not in VARIANTS:
        return True
    return all(VARIANTS[variant].get(key) == VARIANTS[other].get(key) for key in _SAME_NETWORK)


def _entry(name, facts):
    identity, addresses = facts.pop("id"), facts.pop("source")
    sizes, digests = facts.pop("size", {}), facts.pop("sha256", {})
    policy = {key: facts.pop(key) for key in _PREPROCESSING}
    accuracy = tuple(Accuracy(**result) for result in facts.pop("accuracy", ()))
    files = [PublishedFile(address.replace("{id}", identity)) for address in addresses]
    unknown = {*sizes, *digests} - {file.name for file in files}
    unknown |= set(facts) - {field.name for field in dataclasses.fields(PublishedWeights)}
    if unknown:
        raise ValueError(f"catalog.toml, {name}: unknown {', '.join(sorted(unknown))}")
    return PublishedWeights(
        name=name,
        published_name=urllib.parse.unquote(identity),
        files=tuple(
            dataclasses.replace(file, size=sizes.get(file.name), sha256=digests.get(file.name))
            for file in files
        ),
        preprocessing=Preprocessing(**policy),
        accuracy=accuracy,
        **facts,
    )
