"""Encoding the rows of a corpus, without Ray's object store."""

from typing import Any

import numpy as np
import pyarrow as pa

from cprec.encode.prompt import TABLE1
from cprec.encode.tokens import EncodedSample
from cprec.stream.row_encoder import RowEncoder


class SampleIdEncoder:
    """Encoder whose prompts are two tokens: the sample's id and 0."""

    def encode_samples(self, rows: pa.Table) -> list[EncodedSample]:
        return [EncodedSample(np.array([i, 0]), 1, 0) for i in rows["sample_id"].to_pylist()]


class RowEncoderOfSampleIds(RowEncoder):
    """Encodes sample ids, not titles."""

    def load_prompt_encoder(self) -> Any:
        return SampleIdEncoder()


def test_rows_without_text_load_no_tokenizer() -> None:
    no_titles: Any = None
    encoder = RowEncoderOfSampleIds("/no/such/base", None, 512, TABLE1, no_titles)
    [sample] = encoder.encode_rows(pa.table({"sample_id": pa.array([7], pa.int64())}))
    assert sample.ids.tolist() == [7, 0]
