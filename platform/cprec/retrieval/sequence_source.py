"""Items that SASRec ranks first after a history, as far as it knows the items."""

from collections.abc import Sequence

import numpy as np
import torch

from cprec.baselines.sasrec import SASRec
from cprec.baselines.sequences import pad_histories
from cprec.retrieval.candidates import NO_ITEM, Histories, Items
from cprec.retrieval.vector_index import VectorIndex


class SequenceSource:
    """Finds the items that SASRec scores highest after a history.

    The score is the inner product of an item's embedding and the network's state at the end of the
    history.
    """

    def __init__(self, network: SASRec, items: Items) -> None:
        """Builds the index.

        Args:
            network: The network, in evaluation mode.
            items: The items that it knows, in its order: ascending [items of the network].
        """
        self._network = network
        self._items = items
        self._index = VectorIndex(items, network.embed_catalogue().detach().numpy())

    @torch.inference_mode()
    def find(self, histories: Histories, k: int) -> Items:
        """Finds the best candidates for each history; NO_ITEM where it knows no item of it."""
        numbers = [self._to_numbers(history) for history in histories]
        rows = torch.from_numpy(pad_histories(numbers, self._network.max_length))
        states = self._network.encode_histories(rows)
        found = self._index.search(states.numpy(), k)
        known = np.array([bool(row) for row in numbers])
        return np.where(known[:, None], found, NO_ITEM)

    def _to_numbers(self, history: Sequence[int]) -> list[int]:
        """Returns the network's numbers, from 1, of the items of a history that it knows."""
        items = np.array(history, dtype=np.int64)
        known = items[np.isin(items, self._items)]
        return (np.searchsorted(self._items, known) + 1).tolist()  # type: ignore[no-any-return]
