"""What is asked of a running model server, and which answers are right.

A check is a function that says what it saw, and raises where that is wrong. Which of them apply
is read off the model's metadata. What a server must answer to a bad request is what TensorFlow
Serving's interface documents: https://www.tensorflow.org/tfx/serving/api_rest.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from keras_vit.serving.client import (
    CLASSIFY,
    Client,
    RestClient,
    ServingError,
    Signature,
)
from keras_vit.serving.pictures import (
    NO_LIMIT,
    bad_pictures,
    encode,
    oversized_picture,
    photograph,
    shrunk,
)

Outcome = Literal["pass", "fail", "not applicable"]

# What each known signature takes.
_TAKES = {
    "serving_default": "pictures",
    "pixels": "pixels",
    "classify": "examples",
    "embed": "pictures",
    "attention": "pictures",
}
_EXAMPLE_FEATURE = "image/encoded"
# Where a model takes pixels of any size.
_PIXELS_SIZE = (37, 48)
# Probabilities are rounded to float32, of which there may be thousands.
_SUM_TOLERANCE = 1e-3

_INVALID = {"400", "INVALID_ARGUMENT"}
_MISSING = {"404", "NOT_FOUND"}
_NO_SIGNATURE = {"400", "404", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"}


@dataclass(frozen=True)
class ServeVerdict:
    """What one check of a server came to.

    Args:
        check: What was checked.
        protocol: "REST", "gRPC" or "both".
        outcome: "pass", "fail" or "not applicable".
        detail: What was seen.
    """

    check: str
    protocol: str
    outcome: Outcome
    detail: str


class Wrong(Exception):
    """The server did not do what it must."""


class NotApplicable(Exception):
    """There is nothing to check."""


# What a check raises that fails, those of an answer of another form than the checks read last.
FAILURES = (Wrong, ServingError, ValueError, OSError, KeyError, IndexError, TypeError)


@dataclass
class Subject:
    """A model behind one protocol of a server, and what the checks found out of it.

    Args:
        client: How it is spoken to.
        model: Its name.
        pictures: Encoded pictures by name, all good.
        tolerance: How far two answers for the same picture may differ.
        max_pixels: Height times width of what `pixels` is asked about, at most.
        signatures: The known signatures.
        answers: Their answers for the good pictures, in one batch.
        alone: Their answers for the first one alone.
        refuses_calls: By signature, whether a bad picture fails the call, or its row alone.
        has_timed_out: Whether an answer did not come in time.
    """

    client: Client
    model: str
    pictures: Mapping[str, bytes]
    tolerance: float
    max_pixels: int = NO_LIMIT
    versions: dict[int, str] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    answers: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    alone: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    refuses_calls: dict[str, bool] = field(default_factory=dict)
    has_timed_out: bool = False

    def ask(self, signature: Signature, rows: Sequence, **options) -> dict[str, np.ndarray]:
        """The model's answer for encoded pictures, or for arrays of pixels."""
        inputs = signature_inputs(signature, rows)
        return self.client.predict(self.model, signature, inputs, **options)

    def rows(self, signature: Signature) -> list:
        """Good rows for a signature."""
        if _TAKES[signature.name] != "pixels":
            return list(self.pictures.values())
        (spec,) = signature.inputs.values()
        free_height, free_width = shrunk(_PIXELS_SIZE, self.max_pixels)
        height, width = spec.shape[1:3] if spec.shape else (None, None)
        size = (height or free_height, width or free_width)
        return [photograph(*size, seed) for seed in range(3)]

    def with_pictures(self) -> Iterator[Signature]:
        """The signatures that take encoded pictures."""
        for signature in self.signatures.values():
            if _TAKES[signature.name] != "pixels":
                yield signature


def signature_inputs(signature: Signature, rows: Sequence) -> dict[str, Sequence | np.ndarray]:
    """A known signature's inputs: encoded pictures, `tf.Example`s of them, or pixels."""
    (name,) = signature.inputs
    if signature.method == CLASSIFY:
        return {_EXAMPLE_FEATURE: rows}
    return {name: np.stack(rows) if _TAKES[signature.name] == "pixels" else rows}


def run_checks(subject: Subject) -> Iterator[ServeVerdict]:
    """Runs every check of one protocol, in order; a later one may build on an earlier one."""
    protocol = subject.client.protocol
    end = ""
    for name, check in _checks(subject):
        if end:
            yield ServeVerdict(name, protocol, "not applicable", end)
            continue
        verdict = judge(name, protocol, functools.partial(_timed, subject, check))
        yield verdict
        if subject.has_timed_out:
            # Each of the others might be waited for as long.
            end = "the server did not answer in time"
        elif verdict.outcome == "fail" and not _answers(subject):
            end = "the server no longer answers"


def run_comparisons(first: Subject, second: Subject) -> Iterator[ServeVerdict]:
    """Compares the answers of two protocols for the same rows, signature by signature."""
    for name in dict.fromkeys([*first.signatures, *second.signatures]):
        check = functools.partial(_protocols_agree, first, second, name)
        yield judge(f"{name}: REST and gRPC agree", "both", check)


def judge(name: str, protocol: str, check: Callable[[], str]) -> ServeVerdict:
    """The verdict of one check."""
    try:
        return ServeVerdict(name, protocol, "pass", check())
    except NotApplicable as reason:
        return ServeVerdict(name, protocol, "not applicable", str(reason))
    except FAILURES as error:
        return ServeVerdict(name, protocol, "fail", why_failed(error))


def why_failed(error: Exception) -> str:
    """Why a check failed; of an answer that cannot be read, all that is known is the error."""
    if isinstance(error, KeyError | IndexError | TypeError):
        return f"The answer does not have the form expected: {type(error).__name__}: {error}"
    return str(error)


def difference(
    expected: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray], tolerance: float
) -> float:
    """The largest difference of two answers for the same rows; infinite where names differ.

    A NaN differs from everything. Outputs without bounds, such as logits, are compared relative to
    their largest value. The names of classes are compared where they are certain, see
    `certain_classes`.
    """
    if set(expected) != set(seen):
        return np.inf
    largest = 0.0
    for name, value in expected.items():
        other = seen[name]
        if value.shape != other.shape:
            return np.inf
        if value.dtype != object:
            value, other = value.astype("float64"), other.astype("float64")
            scale = max(1.0, np.abs(value).max(initial=0.0))
            furthest = np.abs(value - other).max(initial=0.0) / scale
            largest = max(largest, np.inf if np.isnan(furthest) else float(furthest))
        elif name == "classes" and "scores" in expected:
            if (value != other)[certain_classes(expected, tolerance)].any():
                return np.inf
        elif (value != other).any():
            return np.inf
    return largest


def is_bad_row(signature: Signature, answer: Mapping[str, np.ndarray], row: int) -> bool:
    """Whether an answer marks a row as a bad picture: an error text, all else zero or empty."""
    if "error" in answer:
        text = answer["error"][row]
    elif signature.method == CLASSIFY:
        # The first class carries it, where there is one.
        text = next(iter(answer["classes"][row]), b"")
    else:
        return False
    empty = all(
        not value[row].any()
        for name, value in answer.items()
        if value.dtype != object or (name == "classes" and "error" in answer)
    )
    return bool(text) and empty


def certain_classes(answer: Mapping[str, np.ndarray], tolerance: float) -> np.ndarray:
    """Which `classes` of an answer no other class can have changed places with.

    Their scores are apart from those before and after by more than twice the tolerance, the last
    one's also from that of the best class that is not shown.
    """
    scores = answer["scores"].astype("float64")
    top = scores.shape[-1]
    if "probabilities" in answer:
        unseen = -np.sort(-answer["probabilities"].astype("float64"), axis=-1)[..., top : top + 1]
    else:
        left = 1 - scores.sum(axis=-1, keepdims=True)
        unseen = np.minimum(np.maximum(left, 0), scores[..., -1:])
    ends = np.full((*scores.shape[:-1], 1), np.inf)
    gaps = -np.diff(np.concatenate([ends, scores, unseen, -ends], axis=-1), axis=-1)
    is_wide = gaps > 2 * tolerance
    return is_wide[..., :top] & is_wide[..., 1 : top + 1]


def _timed(subject, check):
    try:
        return check()
    except (Wrong, TimeoutError) as error:
        if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
            subject.has_timed_out = True
        raise


def _checks(subject):
    yield "status", functools.partial(_status, subject)
    yield "metadata", functools.partial(_metadata, subject)
    is_rest = isinstance(subject.client, RestClient)
    for name, signature in subject.signatures.items():
        for title, check in (*_SIGNATURE_CHECKS, *(_REST_CHECKS if is_rest else ())):
            yield f"{name}: {title}", functools.partial(check, subject, signature)
    for title, check in _MODEL_CHECKS:
        yield title, functools.partial(check, subject)
    for kind, picture in bad_pictures().items():
        yield f"bad picture: {kind}", functools.partial(_bad_picture, subject, kind, picture)
    yield "bad picture: 32 MiB", functools.partial(_oversized_picture, subject)
    for signature in subject.with_pictures():
        check = functools.partial(_bad_among_good, subject, signature)
        yield f"{signature.name}: bad pictures among good ones", check
    for title, codes, protocol, request in _BAD_REQUESTS:
        if protocol in (None, subject.client.protocol):
            check = functools.partial(_bad_request, subject, codes, request)
            yield f"bad request: {title}", check


def _status(subject):
    subject.versions = subject.client.status(subject.model)
    seen = ", ".join(f"{version} {state}" for version, state in sorted(subject.versions.items()))
    if "AVAILABLE" not in subject.versions.values():
        raise Wrong(f"No version is AVAILABLE: {seen or 'none'}.")
    return f"version {seen}"


def _metadata(subject):
    found = subject.client.signatures(subject.model)
    left_out = []
    for name in sorted(found, key=lambda name: list(_TAKES).index(name) if name in _TAKES else 9):
        if _is_known(found[name]):
            subject.signatures[name] = found[name]
        elif not name.startswith("__"):
            left_out.append(name)
    if not subject.signatures:
        raise Wrong(
            f"None of {', '.join(sorted(found)) or 'no signatures'} is one that is known here: "
            f"{', '.join(_TAKES)}, with the inputs of an exported model."
        )
    note = f"; not known, not checked: {', '.join(left_out)}" if left_out else ""
    return ", ".join(subject.signatures) + note


def _is_known(signature):
    takes = _TAKES.get(signature.name)
    if takes is None or len(signature.inputs) != 1:
        return False
    ((name, spec),) = signature.inputs.items()
    rank = None if spec.shape is None else len(spec.shape)
    if takes == "pixels":
        return (spec.dtype, name) == ("uint8", "pixels") and rank in (4, None)
    is_classify = signature.method == CLASSIFY
    return spec.dtype == "string" and rank in (1, None) and is_classify == (takes == "examples")


def _good_answers(subject, signature):
    rows = subject.rows(signature)
    answer = subject.ask(signature, rows)
    if set(answer) != set(signature.outputs):
        raise Wrong(f"Outputs {sorted(answer)}, by the metadata {sorted(signature.outputs)}.")
    for name, spec in signature.outputs.items():
        value = answer[name]
        dtype = "string" if value.dtype == object else str(value.dtype)
        expected = "x".join("?" if size is None else str(size) for size in spec.shape or ())
        seen = "x".join(map(str, value.shape))
        if dtype != spec.dtype:
            raise Wrong(f"{name} is {dtype}, by the metadata {spec.dtype}.")
        if len(value) != len(rows) or not _fits(value.shape, spec.shape):
            raise Wrong(f"{name} is {seen} for {len(rows)} pictures, by the metadata {expected}.")
        if value.dtype != object and not np.isfinite(value).all():
            raise Wrong(f"{name} is not finite.")
    for row in range(len(rows)):
        _check_good_row(subject, signature, answer, row)
    subject.answers[signature.name] = answer
    outputs = ", ".join(
        f"{name} {'x'.join(map(str, answer[name].shape))}" for name in sorted(answer)
    )
    return f"{len(rows)} pictures → {outputs}"


def _check_good_row(subject, signature, answer, row):
    picture = "pixels" if _TAKES[signature.name] == "pixels" else list(subject.pictures)[row]
    if "error" in answer and answer["error"][row]:
        raise Wrong(f"The good picture {picture!r} is refused: {_text(answer['error'][row])}")
    if signature.method == CLASSIFY and is_bad_row(signature, answer, row):
        raise Wrong(f"The good picture {picture!r} is refused: {_text(answer['classes'][row, 0])}")


def _fits(shape, expected):
    return expected is None or (
        len(shape) == len(expected)
        and all(size in (seen, None) for seen, size in zip(shape, expected, strict=True))
    )


def _scores(subject, signature):
    answer = _answer(subject, signature.name)
    if not {"scores", "probabilities"} & set(answer):
        raise NotApplicable("no scores, no probabilities")
    seen = []
    if "scores" in answer:
        scores = answer["scores"]
        if (np.diff(scores, axis=-1) > 0).any():
            raise Wrong("The scores are not sorted, best first.")
        # A model may hand back the scores of no class.
        lowest, highest = scores.min(initial=np.inf), scores.max(initial=-np.inf)
        if lowest < 0 or highest > 1 + _SUM_TOLERANCE:
            raise Wrong(f"Scores lie between {lowest:g} and {highest:g}, not 0 and 1.")
        seen.append("scores sorted")
    if "probabilities" in answer:
        probabilities = answer["probabilities"]
        sums = probabilities.sum(-1, dtype="float64")
        if np.abs(sums - 1).max() > _SUM_TOLERANCE:
            raise Wrong(f"Probabilities sum to {sums.min():g} to {sums.max():g}, not to 1.")
        seen.append("probabilities sum to 1")
        if "scores" in answer:
            best = -np.sort(-probabilities, axis=-1)[:, : answer["scores"].shape[1]]
            if np.abs(best - answer["scores"]).max(initial=0.0) > 1e-6:
                raise Wrong("The scores are not the largest probabilities.")
    return ", ".join(seen)


def _alone_as_in_a_batch(subject, signature):
    together = _answer(subject, signature.name)
    largest = 0.0
    for row, picture in enumerate(subject.rows(signature)):
        expected = {name: value[row : row + 1] for name, value in together.items()}
        answer = subject.ask(signature, [picture])
        subject.alone.setdefault(signature.name, answer)
        largest = max(largest, difference(expected, answer, subject.tolerance))
    backwards = subject.ask(signature, subject.rows(signature)[::-1])
    backwards = {name: value[::-1] for name, value in backwards.items()}
    largest = max(largest, difference(together, backwards, subject.tolerance))
    return _within(subject.tolerance, largest, "alone and in a batch")


def _layouts_agree(subject, signature):
    if signature.method == CLASSIFY:
        raise NotApplicable("examples have one layout")
    _answer(subject, signature.name)
    rows = subject.rows(signature)[:2]
    expected = subject.ask(signature, rows)
    largest = max(
        difference(expected, subject.ask(signature, rows, layout=layout), subject.tolerance)
        for layout in ("shorthand", "columns")
    )
    return _within(subject.tolerance, largest, "named rows, rows and columns")


def _pixels_and_pictures_agree(subject):
    """What Pillow encodes losslessly is what it was."""
    signatures = _signatures(subject, "pixels", "serving_default")
    pixels, pictures = signatures
    rows = subject.rows(pixels)
    expected = _answer(subject, pixels.name)
    seen = subject.ask(pictures, [encode(row, "PNG") for row in rows])
    largest = difference(*_shared(expected, seen), subject.tolerance)
    return _within(subject.tolerance, largest, "as pixels and as PNG")


def _classify_agrees(subject):
    signatures = _signatures(subject, "serving_default", "classify")
    answers = [_answer(subject, signature.name) for signature in signatures]
    largest = difference(*_shared(*answers), subject.tolerance)
    return _within(subject.tolerance, largest, "serving_default, classify")


def _protocols_agree(first, second, name):
    for subject in (first, second):
        if name not in subject.signatures:
            raise Wrong(f"{subject.client.protocol} does not have this signature.")
    tolerance = max(first.tolerance, second.tolerance)
    largest = difference(_answer(first, name), _answer(second, name), tolerance)
    return _within(tolerance, largest, "REST and gRPC")


def _bad_picture(subject, kind, picture):
    seen = {}
    for signature in subject.with_pictures():
        try:
            answer = subject.ask(signature, [picture])
        except ServingError as error:
            _check_refusal(error, _INVALID)
            result, refuses = f"call refused ({error.code})", True
        else:
            if not is_bad_row(signature, answer, 0):
                raise Wrong(f"{signature.name} answers as if it were a picture.")
            result, refuses = "an error for its row", False
        if subject.refuses_calls.setdefault(signature.name, refuses) != refuses:
            raise Wrong(f"{signature.name}: {result}, unlike for the bad pictures before.")
        seen.setdefault(result, []).append(signature.name)
        _check_still_well(subject)
    return _listed(seen)


def _oversized_picture(subject):
    for signature in subject.with_pictures():
        try:
            answer = subject.ask(signature, [oversized_picture()])
        except ServingError as error:
            # What refuses a body of that size may be a proxy.
            if not error.is_refusal:
                raise Wrong(f"{signature.name} answers {error}") from error
            result = f"call refused ({error.code})"
        else:
            if not is_bad_row(signature, answer, 0):
                raise Wrong(f"{signature.name} answers as if it were a picture.")
            result = "an error for its row"
        _check_still_well(subject)
        # It is a large request: one signature says it for all.
        return f"{result}: {signature.name}"
    raise NotApplicable("no signature takes pictures")


def _bad_among_good(subject, signature):
    expected = _answer(subject, signature.name)
    rows = subject.rows(signature)
    # No more rows than before: a server may bound the size of a batch.
    bad = dict(list(bad_pictures().items())[: max(1, len(rows) - 2)])
    kept = rows[: max(1, len(rows) - len(bad))]
    mixed = [kept[0], *bad.values(), *kept[1:]]
    good = [0, *range(1 + len(bad), len(mixed))]
    try:
        answer = subject.ask(signature, mixed)
    except ServingError as error:
        _check_refusal(error, _INVALID)
        if not subject.refuses_calls.get(signature.name, True):
            raise Wrong(f"One bad picture fails its neighbours: {error}") from error
        _check_still_well(subject)
        raise NotApplicable(
            f"one bad picture fails the whole call ({error.code}): the model does not isolate them"
        ) from error
    for row, kind in enumerate(bad, start=1):
        if not is_bad_row(signature, answer, row):
            raise Wrong(f"{kind}: no error in its row.")
    expected = {name: value[: len(kept)] for name, value in expected.items()}
    seen = {name: value[good] for name, value in answer.items()}
    largest = difference(expected, seen, subject.tolerance)
    return _within(subject.tolerance, largest, f"with and without {len(bad)} bad neighbours")


def _bad_request(subject, codes, request):
    if not subject.signatures:
        raise NotApplicable("no signature to ask")
    try:
        request(subject, next(iter(subject.signatures.values())))
    except ServingError as error:
        _check_refusal(error, codes)
        _check_still_well(subject)
        return f"{error.code}: {_text(error.message)}"
    raise Wrong("It is answered as if it were right.")


def _wrong_dtype(subject, signature):
    if signature.method == CLASSIFY:
        subject.client.predict(subject.model, signature, {_EXAMPLE_FEATURE: np.ones(2, "float32")})
        return
    (name,) = signature.inputs
    takes_pixels = _TAKES[signature.name] == "pixels"
    values = [b"text"] if takes_pixels else np.ones(2, "float32")
    subject.client.predict(subject.model, signature, {name: values})


def _unknown_input(subject, signature):
    rows = subject.rows(signature)[:1]
    subject.client.predict(subject.model, _not_classify(signature), {"no_such_input": rows})


def _missing_input(subject, signature):
    subject.client.predict(subject.model, _not_classify(signature), {})


def _unknown_signature(subject, signature):
    unknown = dataclasses.replace(signature, name="no_such_signature")
    inputs = signature_inputs(signature, subject.rows(signature)[:1])
    subject.client.predict(subject.model, unknown, inputs)


def _unknown_model(subject, signature):
    inputs = signature_inputs(signature, subject.rows(signature)[:1])
    subject.client.predict("no_such_model", signature, inputs)


def _unknown_version(subject, signature):
    subject.ask(signature, subject.rows(signature)[:1], version=987_654_321)


def _malformed_json(subject, signature):
    _post(subject, signature, b'{"instances": [')


def _base64_rubbish(subject, signature):
    _post(subject, signature, b'{"inputs": {"%s": [{"b64": "!!!"}]}}' % _input_name(signature))


def _negative_shape(subject, signature):
    rows = subject.rows(signature)[:1]
    request = subject.client.request(
        subject.model, _not_classify(signature), signature_inputs(_not_classify(signature), rows)
    )
    for tensor in request.inputs.values():
        tensor.tensor_shape.dim[0].size = -5
    subject.client.send(request)


# What is sent, the codes that are right, the protocol that it is possible in, and how.
_BAD_REQUESTS = (
    ("wrong dtype", _INVALID, None, _wrong_dtype),
    ("unknown input", _INVALID, None, _unknown_input),
    ("no input", _INVALID, None, _missing_input),
    ("unknown signature", _NO_SIGNATURE, None, _unknown_signature),
    ("unknown model", _MISSING, None, _unknown_model),
    ("unknown version", _MISSING, None, _unknown_version),
    ("malformed JSON", _INVALID, "REST", _malformed_json),
    ("base64 rubbish", _INVALID, "REST", _base64_rubbish),
    ("negative shape", _INVALID, "gRPC", _negative_shape),
)

_SIGNATURE_CHECKS = (
    ("answers", _good_answers),
    ("scores", _scores),
    ("alone as in a batch", _alone_as_in_a_batch),
)

_REST_CHECKS = (("JSON layouts", _layouts_agree),)

_MODEL_CHECKS = (
    ("pixels as pictures", _pixels_and_pictures_agree),
    ("classify as serving_default", _classify_agrees),
)


def _post(subject, signature, body):
    path, _ = subject.client.request(subject.model, _not_classify(signature), {})
    subject.client.send((path, body))


def _input_name(signature):
    (name,) = signature.inputs
    return name.encode()


def _not_classify(signature):
    return dataclasses.replace(signature, method="")


def _check_refusal(error, codes):
    if error.code not in codes:
        right = " or ".join(
            sorted(code for code in codes if code.isdecimal() == error.code.isdecimal())
        )
        raise Wrong(f"The answer is {error}; documented is {right}.")
    if not error.documented:
        raise Wrong(f"The answer {error} is not the documented JSON object with `error`.")


def _check_still_well(subject):
    """A good picture is answered as before."""
    for signature in subject.signatures.values():
        expected = subject.alone.get(signature.name)
        if expected is None:
            continue
        try:
            seen = subject.ask(signature, subject.rows(signature)[:1])
        except (ServingError, OSError) as error:
            raise Wrong(f"Afterwards a good picture fails: {error}") from error
        if difference(expected, seen, subject.tolerance) > subject.tolerance:
            raise Wrong("Afterwards a good picture is answered otherwise than before.")
        return


def _answers(subject):
    try:
        subject.client.status(subject.model)
    except OSError:
        return False
    except (ServingError, ValueError):
        return True
    return True


def _answer(subject, name):
    if name not in subject.answers:
        raise NotApplicable(f"{name} gave no good answer")
    return subject.answers[name]


def _signatures(subject, *names):
    for name in names:
        if name not in subject.signatures:
            raise NotApplicable(f"no signature {name}")
    return [subject.signatures[name] for name in names]


def _shared(first, second):
    names = (set(first) & set(second)) - {"error"}
    return [{name: answer[name] for name in names} for answer in (first, second)]


def _within(tolerance, largest, what):
    if not largest <= tolerance:
        shown = "names, shapes or texts differ" if np.isinf(largest) else f"differ by {largest:.1e}"
        raise Wrong(f"{what}: {shown}; at most {tolerance:.0e} is allowed.")
    return f"{what}: differ by at most {largest:.1e}"


def _listed(seen):
    if not seen:
        raise NotApplicable("no signature takes pictures")
    return "; ".join(f"{result}: {', '.join(names)}" for result, names in seen.items())


def _text(message):
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
