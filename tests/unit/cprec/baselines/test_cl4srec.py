"""CL4SRec's views are what their names say, and its losses are those of the paper."""

import math
from collections.abc import Callable

import pytest
import torch

from cprec.baselines.cl4srec import CL4SRec, contrastive_loss, crop, mask, reorder

LENGTHS = (1, 2, 5, 9, 10)
ROWS = torch.tensor(
    [[0] * (10 - n) + list(range(100 * n + 1, 101 * n + 1)) for n in LENGTHS for _ in range(40)]
)
"""Sequences of several lengths, 40 of each, whose items are in ascending order."""


def items(row: torch.Tensor) -> list[int]:
    """The items of a row, which is padded on the left and nowhere else."""
    found = row.tolist()
    kept = [item for item in found if item]
    assert found[len(found) - len(kept) :] == kept
    return kept


def test_cropping_keeps_a_contiguous_part() -> None:
    firsts = set()
    for before, after in zip(ROWS, crop(ROWS, 0.6), strict=True):
        whole, kept = items(before), items(after)
        assert len(kept) == max(math.floor(0.6 * len(whole)), 1)
        assert kept == list(range(kept[0], kept[0] + len(kept)))
        assert set(kept) <= set(whole)
        firsts.add((len(whole), whole.index(kept[0])))
    assert {first for length, first in firsts if length == 10} == {0, 1, 2, 3, 4}


def test_masking_replaces_a_fraction() -> None:
    places = set()
    for before, after in zip(ROWS, mask(ROWS, 0.3, 999), strict=True):
        whole, kept = items(before), items(after)
        masked = [i for i, item in enumerate(kept) if item == 999]
        assert len(masked) == math.floor(0.3 * len(whole))
        assert all(kept[i] == whole[i] for i in range(len(whole)) if i not in masked)
        places |= set(masked) if len(whole) == 10 else set()
    assert places == set(range(10))


def test_reordering_shuffles_a_contiguous_part() -> None:
    moved_anywhere = set()
    for before, after in zip(ROWS, reorder(ROWS, 0.6), strict=True):
        whole, shuffled = items(before), items(after)
        assert sorted(shuffled) == whole
        moved = [i for i in range(len(whole)) if whole[i] != shuffled[i]]
        assert not moved or moved[-1] - moved[0] < math.floor(0.6 * len(whole))
        moved_anywhere |= set(moved) if len(whole) == 10 else set()
    assert moved_anywhere == set(range(10))


@pytest.mark.parametrize(
    "same",
    [lambda: crop(ROWS, 1.0), lambda: mask(ROWS, 0.0, 999), lambda: reorder(ROWS, 0.0)],
)
def test_a_fraction_that_changes_nothing_leaves_the_sequence(
    same: Callable[[], torch.Tensor],
) -> None:
    assert torch.equal(same(), ROWS)


def test_the_contrastive_loss_is_that_of_each_pair_among_the_other_views() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 4)
    views = [*first, *second]
    losses = []
    for i, view in enumerate(views):
        partner = (i + 3) % 6
        others = sum(math.exp(view @ views[j]) for j in range(6) if j != i)
        losses.append(-math.log(math.exp(view @ views[partner]) / others))
    loss = contrastive_loss(torch.stack(views))
    assert float(loss) == pytest.approx(sum(losses) / 6, rel=1e-5)


@torch.no_grad()
def test_the_loss_adds_the_weighted_contrast_to_the_sampled_softmax() -> None:
    inputs = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    targets = torch.tensor([[0, 2, 3, 4], [5, 6, 7, 8]])
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        network = CL4SRec(9, 4, 8, 1, 0.0, weight=weight, crop=0.5, mask=0.5, reorder=0.5).eval()
        torch.manual_seed(1)
        losses[weight] = float(network.loss(inputs, targets))
        torch.manual_seed(1)
        target, negative = network.score_targets(inputs, targets).T
    softmax = -(target.exp() / (target.exp() + negative.exp())).log().mean()
    assert losses[0.0] == pytest.approx(float(softmax), rel=1e-5)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-4)
    assert losses[1.0] > losses[0.0]


def test_the_mask_is_no_item_that_can_be_recommended() -> None:
    network = CL4SRec(9, 4, 8, 1, 0.0, weight=1, crop=0.5, mask=1.0, reorder=0.5)
    assert network.score_catalogue(torch.zeros(1, 8)).shape == (1, 9)
    assert len(network.item.weight) == 11  # type: ignore[arg-type]
