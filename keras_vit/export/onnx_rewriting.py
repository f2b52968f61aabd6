"""Whole operations in place of the parts that the converter from TensorFlow writes for them.

ONNX Runtime finds its fast kernels by such operations, and quantisers know them. A rule is what to
look for and what to put there.
"""

import numpy as np

_COMMUTATIVE = ("Add", "Mul")


def _layer_normalization():
    mean = ("ReduceMean", "x", "axes")
    difference = ("Sub", "x", mean)
    variance = ("ReduceMean", ("Mul", difference, difference), "axes")
    deviation = ("Reciprocal", ("Sqrt", ("Add", variance, "epsilon")))
    scale = ("Mul", deviation, ("Reshape", "gamma", "gamma_shape"))
    shift = ("Add", ("Mul", ("Neg", mean), scale), ("Reshape", "beta", "beta_shape"))
    return ("Add", ("Mul", "x", scale), shift)


def _gelu_tanh():
    cubic = ("Add", "x", ("Mul", ("Pow", "x", 3.0), 0.044715))
    return ("Mul", ("Mul", "x", 0.5), ("Add", ("Tanh", ("Mul", cubic, 0.7978845608)), 1.0))


# A pattern is (operation, pattern of each input); a string stands for any one value, and for the
# same one wherever it occurs, a number for a constant.
_LAYER_NORMALIZATION = _layer_normalization()
_GELU_TANH = _gelu_tanh()
_GELU = ("Mul", ("Mul", "x", 0.5), ("Add", ("Erf", ("Mul", "x", 0.7071067812)), 1.0))
# Keras' own, in a layer of somebody else.
_KERAS_GELU = ("Mul", ("Mul", "x", 0.5), ("Erfc", ("Mul", ("Neg", "x"), 0.7071067812)))


def use_whole_operations(graph):
    """Rewrites layer norms and GELUs of an ONNX graph, in place.

    Args:
        graph: An `onnx.GraphProto` of opset 18, its names unique.
    """
    from onnx import helper

    matcher = _Matcher(graph)
    for index, node in enumerate(graph.node):
        out = node.output[0]
        if found := matcher.match(_LAYER_NORMALIZATION, out):
            if np.ravel(matcher.constant(found["axes"])).tolist() not in ([-1], [2]):
                continue
            new = helper.make_node(
                "LayerNormalization",
                [found["x"], found["gamma"], found["beta"]],
                [out],
                name=node.name,
                axis=-1,
                epsilon=float(matcher.constant(found["epsilon"])),
            )
        elif found := matcher.match(_GELU, out) or matcher.match(_KERAS_GELU, out):
            new = helper.make_node("Gelu", [found["x"]], [out], name=node.name)
        elif found := matcher.match(_GELU_TANH, out):
            new = helper.make_node("Gelu", [found["x"]], [out], name=node.name, approximate="tanh")
        else:
            continue
        graph.node[index].CopyFrom(new)
    _remove_unread(graph)


class _Matcher:
    def __init__(self, graph):
        self.producers = {output: node for node in graph.node for output in node.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}

    def constant(self, name):
        from onnx import numpy_helper

        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def match(self, pattern, name, found=None):
        """What the names of the pattern stand for if it computes the value `name`, or None."""
        found = {} if found is None else found
        if isinstance(pattern, str):
            return found if found.setdefault(pattern, name) == name else None
        if isinstance(pattern, float):
            constant = self.constant(name)
            is_close = constant is not None and constant.size == 1
            is_close = is_close and np.isclose(constant.item(), pattern, rtol=1e-6)
            return found if is_close else None
        operation, *inputs = pattern
        node = self.producers.get(name)
        if node is None or node.op_type != operation or len(node.input) != len(inputs):
            return None
        orders = [inputs, inputs[::-1]] if operation in _COMMUTATIVE else [inputs]
        for order in orders:
            matched = dict(found)
            for part, value in zip(order, node.input, strict=True):
                matched = self.match(part, value, matched)
                if matched is None:
                    break
            else:
                return matched
        return None


def _remove_unread(graph):
    read = {output.name for output in graph.output}
    kept = []
    # An operation comes after those whose outputs it reads.
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)
