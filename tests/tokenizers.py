"""Tokenizers of the kinds that bases have, trained on a few titles and the prompt, in a second."""

import string
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from cprec.encode.prompt import BRACES

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = [UNKNOWN, BOS, EOS]
ALPHABET = list(string.printable.strip())


def _texts(titles: Sequence[str]) -> list[str]:
    return [BRACES.render([title], [title, title]) for title in titles]


def _wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN, **special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_level(titles: Sequence[str]) -> PreTrainedTokenizerFast:
    """BPE of bytes, as GPT-2, Llama 3 and Qwen have it."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(titles), trainer)
    return _wrapped(backend)


def space_prefixed(titles: Sequence[str]) -> PreTrainedTokenizerFast:
    """BPE in which a space is a letter of the word after it, as Llama 2 and Mistral have it."""
    backend = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *byte_names],
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(_texts(titles), trainer)
    backend.pre_tokenizer = None
    return _wrapped(backend)


def unigram(titles: Sequence[str]) -> PreTrainedTokenizerFast:
    """Unigram pieces of NFKC text, as SentencePiece makes them (XGLM, T5)."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        unk_token=UNKNOWN,
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(_texts(titles), trainer)
    return _wrapped(backend)


def lower_case_words(titles: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece of lower-case text without accents, as BERT has it."""
    return _word_pieces(titles, pre_tokenizers.BertPreTokenizer())


def spaced_words(titles: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece of whatever stands between two spaces, so that `[SEP]` is a word."""
    return _word_pieces(titles, pre_tokenizers.WhitespaceSplit())


def _word_pieces(titles: Sequence[str], pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    backend.train_from_iterator(_texts(titles), trainer)
    begin, end = (backend.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
    )
    return _wrapped(
        backend, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]"
    )


KINDS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerFast]] = {
    "byte-level BPE": byte_level,
    "BPE with spaces": space_prefixed,
    "Unigram": unigram,
    "WordPiece": lower_case_words,
    "WordPiece of spaced words": spaced_words,
}
"""Trains a tokenizer of each kind on titles."""
