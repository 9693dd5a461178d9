"""dynadapt.numpy: the bits of torch's results, the arrays' own memory, and refusals."""

import numpy as np
import pytest
import torch
from torch_calls import KEYWORDS, calls

import dynadapt.interop.numpy as dn
from dynadapt.interop import torch_ops


def to_numpy(value):
    if isinstance(value, list):
        return [to_numpy(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)
    return value.numpy()


def flat(value):
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else [value]


def bits(value):
    value = to_numpy(value)
    return value.view({2: np.int16, 4: np.int32, 8: np.int64}[value.dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(torch_ops.SCHEMAS))
def test_same_bits_as_torch(name, dtype):
    theirs = calls(dtype, False)[name]
    ours = [to_numpy(a) for a in calls(dtype, False)[name]]
    keywords = KEYWORDS.get(name, {})
    op = getattr(torch.ops.dynadapt, name).default
    # dn.linear and the like take the arguments of torch_ops.linear, where defaults and leading dimensions differ from the op's.
    call = (lambda *a: dn._array(op(*dn._tensor(a)))) if name in dn._FUNCTIONS else getattr(dn, name)
    expected, result = op(*theirs, **keywords), call(*ours, **keywords)
    if expected is None:
        expected, result = theirs, ours  # changed in place
    pairs = [(a, b) for a, b in zip(flat(expected), flat(result), strict=True) if isinstance(a, torch.Tensor)]
    assert pairs
    for a, b in pairs:
        assert (
            isinstance(b, np.ndarray)
            and (bits(a) == bits(torch.from_numpy(b) if b.dtype.name != "bfloat16" else torch.from_numpy(b.view(np.int16)))).all()
        )


def test_functions_read_arrays_where_they_are():
    generator = np.random.default_rng(0)
    x, w = generator.standard_normal((2, 3, 8), np.float32), generator.standard_normal((6, 8), np.float32)
    np.testing.assert_allclose(dn.linear(x, w), x @ w.T, atol=1e-5)
    assert dn._tensor(w).data_ptr() == w.ctypes.data
    w.flags.writeable = False
    assert dn._tensor(w).data_ptr() == w.ctypes.data  # read-only inputs are read in place too, without a warning
    np.testing.assert_allclose(dn.linear(x[::-1], w), x[::-1] @ w.T, atol=1e-5)
    nll = dn.cross_entropy(x, w, np.array([[0, 5, -1], [2, 3, 1]]))
    assert nll.shape == (2, 3) and nll[0, 2] == 0 and nll.dtype == np.float32
    assert dn.activation(x.astype(np.float64), "gelu").dtype == np.float64


def test_refusals():
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match="slots has dtype int64, accepted is int32"):
        dn.linear(x, x, None, x[:1], x[:1, :2], np.zeros(1, np.int64))
    frozen = np.ones(3, np.int32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="memory_fill: mem_len is a read-only array"):
        dn.memory_fill(frozen, np.zeros(1, np.int32), np.ones(1, np.int32), 4)
    with pytest.raises(AttributeError, match="no op 'matmul'"):
        dn.matmul
