"""SASRec as a source: what scoring every item it knows would name."""

import numpy as np
import torch

from cprec.baselines.sasrec import SASRec
from cprec.baselines.training import score_candidates
from cprec.retrieval.candidates import NO_ITEM
from cprec.retrieval.sequence_source import SequenceSource

ITEMS = np.arange(100, 130)


def test_it_names_the_items_that_score_highest() -> None:
    torch.manual_seed(0)
    network = SASRec(len(ITEMS), 5, 8, 1, 0.0).eval()
    histories = [[100, 104, 129], [128], [110, 111, 112, 113, 114, 115, 116]]
    found = SequenceSource(network, ITEMS).find(histories, 7)
    numbers = [[item - 99 for item in history] for history in histories]
    scores = score_candidates(network, numbers, np.tile(np.arange(1, 31), (3, 1)))
    np.testing.assert_array_equal(found, ITEMS[np.argsort(-scores, axis=1)][:, :7])


def test_items_that_joined_later_are_no_part_of_a_history() -> None:
    torch.manual_seed(0)
    source = SequenceSource(SASRec(len(ITEMS), 5, 8, 1, 0.0).eval(), ITEMS)
    np.testing.assert_array_equal(source.find([[100, 500, 104]], 5), source.find([[100, 104]], 5))
    assert source.find([[500], []], 2).tolist() == [[NO_ITEM] * 2] * 2
