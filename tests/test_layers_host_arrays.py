"""Arrays of the host that become weights."""

import os

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_vit.layers.host_arrays import copied_in_rows, handed_over, zeros


@given(
    array=arrays.arrays(
        st.sampled_from(["float32", "float64", "float16"]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40),
        elements=st.floats(-100, 100, width=16),
    ),
    data=st.data(),
)
def test_a_copy_in_rows_holds_what_the_array_holds(array, data):
    axes = data.draw(st.permutations(range(array.ndim)))
    turned = array.transpose(axes)
    copy = copied_in_rows(turned)
    assert copy.flags.c_contiguous and copy.dtype == array.dtype
    assert not np.shares_memory(copy, array)
    np.testing.assert_array_equal(copy, turned)


@pytest.mark.parametrize("shape", [(1000, 30), (30, 1000), (33, 17), (1, 5), (5, 0)])
def test_large_and_odd_matrices_are_turned_whole(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    np.testing.assert_array_equal(copied_in_rows(matrix.T), matrix.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_handed_over_holds_the_values(dtype):
    array = zeros((33, 65))
    array[...] = np.arange(array.size).reshape(array.shape) % 128
    variable = keras.Variable(np.zeros(array.shape, "float32"), dtype=dtype)
    variable.assign(handed_over(array))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")), array
    )
    tensor = keras.ops.convert_to_tensor(handed_over(array), dtype)
    assert keras.backend.standardize_dtype(tensor.dtype) == dtype


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="PyTorch's parameters are copies")
def test_what_is_handed_over_is_the_array_itself():
    array = zeros((64, 64))
    tensor = keras.ops.convert_to_tensor(handed_over(array), "float32")
    array[1, 2] = 5
    assert float(tensor[1, 2]) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is for Unix alone")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_child_process_has_memory_of_its_own():
    array = zeros((4, 4))
    child = os.fork()
    if child == 0:
        array[...] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert not array.any()


def test_zeros_are_writable_and_apart():
    one, other = zeros((2, 3)), zeros((2, 3), "float64")
    one += 1
    assert one.sum() == 6 and not other.any() and other.dtype == "float64"
