"""Products by numpy's BLAS in the tensors' own memory."""

import pytest
import torch

from bpexp.plan import products


@pytest.fixture
def slow_mkl(monkeypatch):
    monkeypatch.setattr(products, "is_mkl_slow", lambda: True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_a_product_is_that_of_torch(slow_mkl, transposed, dtype, tolerance):
    one = torch.randn(3, 5, 7, dtype=dtype) if not transposed else torch.randn(3, 7, 5, dtype=dtype).mT
    other, output = torch.randn(3, 7, 4, dtype=dtype), torch.empty(3, 5, 4, dtype=dtype)
    call = products.numpy_product(one, other, output)
    call()
    torch.testing.assert_close(output, torch.bmm(one, other), rtol=tolerance, atol=tolerance)


def test_a_network_at_infinity_leaves_its_neighbours_bits(slow_mkl):
    one, other, output = torch.randn(3, 5, 7), torch.randn(3, 7, 4), torch.empty(3, 5, 4)
    call = products.numpy_product(one, other, output)
    call()
    before = output.clone()
    one[1, 2, 3] = torch.inf
    other[1] = torch.nan
    with products.silent():
        call()
    assert torch.equal(output[[0, 2]], before[[0, 2]])
    assert output[1].isnan().all()


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.ones(2, 3, 4), torch.ones(2, 5, 4).mT, torch.ones(2, 3, 5)),
        (torch.ones(2, 3, 4), torch.ones(2, 4, 5), torch.ones(2, 5, 3).mT),
        (torch.ones(2, 3, 4).int(), torch.ones(2, 4, 5).int(), torch.ones(2, 3, 5).int()),
        (torch.ones(2, 0, 4), torch.ones(2, 4, 5), torch.ones(2, 0, 5)),
    ],
)
def test_what_would_not_pay_is_left_to_torch(slow_mkl, tensors):
    assert products.numpy_product(*tensors) is None


def test_another_machine_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "is_mkl_slow", lambda: False)
    assert products.numpy_product(torch.ones(1, 2, 3), torch.ones(1, 3, 2), torch.ones(1, 2, 2)) is None
