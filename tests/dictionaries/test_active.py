"""Sparse features against dense arrays: whatever is done sparsely is what the dense array says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.errors import InputError


@st.composite
def dense_arrays(draw: st.DrawFn, rows: int | None = None, width: int | None = None) -> Tensor:
    """Small arrays of small whole numbers, half of them zero, so that sums are exact."""
    n_rows = draw(st.integers(0, 6)) if rows is None else rows
    d_sae = draw(st.integers(1, 8)) if width is None else width
    numbers = st.one_of(st.just(0), st.integers(-5, 5))
    flat = draw(st.lists(numbers, min_size=n_rows * d_sae, max_size=n_rows * d_sae))
    return torch.tensor(flat, dtype=torch.float64).reshape(n_rows, d_sae)


@given(dense_arrays())
def test_dense_and_sparse_are_the_same_array(dense: Tensor) -> None:
    features = SparseFeatures.from_dense(dense)
    assert torch.equal(features.to_dense(), dense)
    assert features.n_active == int((dense != 0).sum())
    assert (features.n_rows, features.d_sae) == tuple(dense.shape)
    assert bool((features.keys[1:] > features.keys[:-1]).all())


@given(dense_arrays(), st.randoms(use_true_random=False))
def test_entries_in_any_order_are_sorted(dense: Tensor, random: object) -> None:
    features = SparseFeatures.from_dense(dense)
    order = list(range(features.n_active))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = SparseFeatures.from_entries(
        features.rows[order], features.indices[order], features.values[order], *dense.shape
    )
    assert torch.equal(again.keys, features.keys)
    assert torch.equal(again.values, features.values)


@given(dense_arrays())
def test_row_offsets_cut_entries_into_rows(dense: Tensor) -> None:
    features = SparseFeatures.from_dense(dense)
    offsets = features.row_offsets().tolist()
    assert len(offsets) == dense.shape[0] + 1
    for row in range(dense.shape[0]):
        held = slice(offsets[row], offsets[row + 1])
        assert features.indices[held].tolist() == dense[row].nonzero()[:, 0].tolist()


@given(dense_arrays())
def test_value_at_reads_every_cell(dense: Tensor) -> None:
    features = SparseFeatures.from_dense(dense)
    rows, indices = torch.cartesian_prod(torch.arange(dense.shape[0]), torch.arange(dense.shape[1])).reshape(-1, 2).T
    assert torch.equal(features.value_at(rows, indices), dense[rows, indices])
    found = features.find(rows, indices)
    assert torch.equal(found >= 0, dense[rows, indices] != 0)
    assert torch.equal(features.rows[found[found >= 0]], rows[found >= 0])


def test_value_outside_the_array_is_no_neighbours_value() -> None:
    features = SparseFeatures.from_dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    outside = features.value_at(torch.tensor([0, 1, -1, 2, 0]), torch.tensor([2, -1, 3, 0, 3]))
    assert outside.tolist() == [0.0] * 5


@given(dense_arrays(), st.data())
def test_select_keeps_what_the_mask_keeps(dense: Tensor, data: st.DataObject) -> None:
    features = SparseFeatures.from_dense(dense)
    mask = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=features.n_active, max_size=features.n_active)), dtype=torch.bool
    )
    expected = torch.zeros_like(dense)
    expected[features.rows[mask], features.indices[mask]] = features.values[mask]
    assert torch.equal(features.select(mask).to_dense(), expected)


@given(st.data())
def test_union_puts_two_arrays_on_one_support(data: st.DataObject) -> None:
    mine = data.draw(dense_arrays())
    theirs = data.draw(dense_arrays(*mine.shape))
    a, b = SparseFeatures.from_dense(mine).union_with(SparseFeatures.from_dense(theirs))
    assert torch.equal(a.keys, b.keys)
    assert torch.equal(a.to_dense(), mine)
    assert torch.equal(b.to_dense(), theirs)
    assert a.n_active == int(((mine != 0) | (theirs != 0)).sum())


@given(dense_arrays())
def test_unique_indices_and_places_give_the_indices_back(dense: Tensor) -> None:
    features = SparseFeatures.from_dense(dense)
    unique, place = features.unique_indices()
    assert torch.equal(unique[place], features.indices)
    assert unique.tolist() == sorted(set(features.indices.tolist()))


@given(st.data())
def test_concatenation_stacks_rows(data: st.DataObject) -> None:
    first = data.draw(dense_arrays())
    second = data.draw(dense_arrays(width=first.shape[1]))
    joined = SparseFeatures.concatenate([SparseFeatures.from_dense(first), SparseFeatures.from_dense(second)])
    assert torch.equal(joined.to_dense(), torch.cat([first, second]))
    assert bool((joined.keys[1:] > joined.keys[:-1]).all())


def test_moving_and_replacing_values_leaves_the_support() -> None:
    features = SparseFeatures.from_dense(torch.tensor([[0.0, 2.0]]))
    assert features.to(dtype=torch.float64).values.dtype == torch.float64
    assert features.with_values(torch.tensor([5.0])).to_dense().tolist() == [[0.0, 5.0]]
    empty = SparseFeatures.empty(3, 4)
    assert empty.to_dense().tolist() == [[0.0] * 4] * 3
    assert empty.row_offsets().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "indices", "message"),
    [
        ([0, 0], [1, 1], "Feature 1 is given twice for row 0."),
        ([0, 2], [1, 1], r"Entry \(row 2, feature 1\) lies outside 2 rows of 3 features."),
        ([0, 1], [1, 3], r"Entry \(row 1, feature 3\) lies outside 2 rows of 3 features."),
    ],
)
def test_entries_that_make_no_array_are_refused(rows: list[int], indices: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseFeatures.from_entries(torch.tensor(rows), torch.tensor(indices), torch.ones(2), 2, 3)


def test_arrays_of_different_shape_are_not_joined() -> None:
    with pytest.raises(InputError, match=r"Features of 2 rows of 3 can't be joined with 2 rows of 4\."):
        SparseFeatures.empty(2, 3).union_with(SparseFeatures.empty(2, 4))
    with pytest.raises(InputError, match=r"equal width; got widths \[3, 4\]"):
        SparseFeatures.concatenate([SparseFeatures.empty(2, 3), SparseFeatures.empty(2, 4)])
