"""Sparse decodes and their transposes against dense products, for every pattern of active features."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitsae.model.runs import sampled_products, weighted_rows

# How many features are active at each position: none at the first, at the last, at all of them.
COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=7)


@given(
    COUNTS, st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64])
)
def test_they_are_the_dense_products_where_features_are_active(
    counts: list[int], d: int, n_unique: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inverse = torch.randint(n_unique, (len(rows),), generator=generator)
    table = torch.randn(n_unique, d, generator=generator, dtype=dtype)
    vectors = torch.randn(len(counts), d, generator=generator, dtype=dtype)
    weights = torch.randn(len(rows), generator=generator, dtype=dtype)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    sampled = sampled_products(vectors, rows, table, inverse)
    assert torch.allclose(sampled, (vectors @ table.T)[rows, inverse], atol=limit)
    dense = torch.zeros(len(counts), n_unique, dtype=dtype).index_put((rows, inverse), weights, accumulate=True)
    written = weighted_rows(weights, rows, table, inverse, len(counts))
    assert torch.allclose(written, dense @ table, atol=limit)
    # A column of a wider gradient is read as it stands.
    wide = torch.randn(len(counts), 2, d, generator=generator, dtype=dtype)
    assert torch.allclose(
        sampled_products(wide[:, 1], rows, table, inverse), (wide[:, 1] @ table.T)[rows, inverse], atol=limit
    )
