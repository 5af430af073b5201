"""The encoder's product, whichever library does it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from circuitsae.dictionaries import products
from circuitsae.errors import InputError


@pytest.fixture(params=["torch", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each library, whichever this machine would take; numpy's is tried wherever numpy has an OpenBLAS."""
    monkeypatch.setenv(products.VARIABLE, request.param)
    if request.param == "torch":
        assert products.openblas() is None
    else:
        blas_of_numpy()
    return str(request.param)


def blas_of_numpy() -> ThreadpoolController:
    try:
        blas = products.openblas()
    except InputError as error:
        pytest.skip(str(error))
    assert blas is not None
    return blas


@pytest.mark.parametrize(
    ("maker", "mkl", "numpys"),
    [("AuthenticAMD", True, True), ("AuthenticAMD", False, False), ("GenuineIntel", True, False), ("", True, False)],
)
def test_the_processor_decides_where_nothing_is_asked_for(
    maker: str, mkl: bool, numpys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(products.VARIABLE, "numpy")
    blas_of_numpy()
    monkeypatch.delenv(products.VARIABLE)
    monkeypatch.setattr(products, "_openblas", products._openblas.__wrapped__)
    monkeypatch.setattr(products, "_processor", lambda: maker)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert (products.openblas() is not None) == numpys


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "mkl")
    with pytest.raises(InputError, match="CIRCUITSAE_PRODUCTS is 'mkl'; expected torch or numpy"):
        products.multiply(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1))
    monkeypatch.setattr(ThreadpoolController, "select", lambda self, **_: ThreadpoolController._from_controllers([]))
    monkeypatch.setattr(products, "_openblas", products._openblas.__wrapped__)
    monkeypatch.setenv(products.VARIABLE, "numpy")
    with pytest.raises(InputError, match="is 'numpy', and this numpy multiplies by another library than OpenBLAS"):
        products.openblas()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n_rows", "d_in", "start", "stop"), [(1, 7, 0, 40), (5, 16, 3, 17), (70, 33, 39, 40), (0, 4, 0, 40)]
)
def test_it_is_the_product_in_a_part_of_a_wider_array(
    way: str, dtype: torch.dtype, n_rows: int, d_in: int, start: int, stop: int
) -> None:
    generator = torch.Generator().manual_seed(n_rows)
    x = torch.randn(n_rows, d_in, generator=generator, dtype=dtype)
    weights = torch.randn(d_in, 40, generator=generator, dtype=dtype).requires_grad_()
    whole = torch.full((n_rows, 40), 7.0, dtype=dtype)
    out = products.multiply(x, weights[:, start:stop], whole[:, start:stop])
    expected = np.einsum("rd,df->rf", x.double().numpy(), weights.detach().double().numpy())[:, start:stop]
    limit = 1e-5 if dtype == torch.float32 else 1e-13
    assert np.allclose(out.numpy(), expected, rtol=limit, atol=limit)
    assert not out.requires_grad
    assert (whole[:, :start] == 7).all() and (whole[:, stop:] == 7).all()


@pytest.mark.parametrize("threads", range(1, 5))
def test_it_takes_as_many_threads_as_torch_and_gives_them_back(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "numpy")
    blas = blas_of_numpy()
    before, own = [lib.num_threads for lib in blas.lib_controllers], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products.multiply(torch.ones(2, 3), torch.ones(3, 4), torch.empty(2, 4))
    finally:
        torch.set_num_threads(own)
    assert [lib.num_threads for lib in blas.lib_controllers] == before


def test_callers_in_several_threads_leave_the_librarys_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "numpy")
    blas = blas_of_numpy()
    before = [lib.num_threads for lib in blas.lib_controllers]
    x, weights = torch.ones(8, 64), torch.ones(64, 512)

    def work(n: int) -> float:
        for _ in range(20):
            out = products.multiply(x, weights, torch.empty(8, 512))
        return float(out.sum())

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {8 * 64 * 512.0}
    assert [lib.num_threads for lib in blas.lib_controllers] == before
