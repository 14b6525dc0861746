"""Prompts to token ids: SentencePiece with T5's conventions (pad 0, end 1, unknown 2)."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from gct_jax.errors import InputError, ModelFolderError
from gct_jax.readable_text import readable, require_words, unknown_words

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


class TokenizedText(NamedTuple):
    """One prompt as the model reads it.

    ids: int32 [length] ending in `EOS_ID`.
    truncated_text: the words that did not fit. A word of which only a part fitted counts as cut,
      although its first ids are kept as T5 does.
    unknown: words and symbols of which the vocabulary lacks a character, each once.
    """

    ids: np.ndarray
    truncated_text: str
    unknown: tuple[str, ...] = ()


class Tokenizer:
    """A SentencePiece vocabulary; `model_bytes` is the content of its `.model` file."""

    def __init__(self, model_bytes: bytes):
        self.model_bytes = model_bytes
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model_bytes)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `.model` file.

        Raises:
          ModelFolderError: the file is missing, is no SentencePiece model or numbers the special
            tokens otherwise than T5 does.
        """
        try:
            tokenizer = cls(Path(path).read_bytes())
        except OSError as error:
            raise ModelFolderError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except RuntimeError:
            raise ModelFolderError(f"{path} is not a SentencePiece model") from None
        processor = tokenizer._processor
        found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        if found != (PAD_ID, EOS_ID, UNKNOWN_ID):
            raise ModelFolderError(
                f"{path} has pad, eos, unk = {found}; T5 needs {(PAD_ID, EOS_ID, UNKNOWN_ID)}"
            )
        return tokenizer

    @property
    def size(self) -> int:
        """Number of pieces, special tokens included."""
        return self._processor.get_piece_size()

    def is_known(self, text: str) -> bool:
        """Whether the vocabulary holds every character of `text`."""
        return UNKNOWN_ID not in self._processor.encode(text)

    def encode(self, text: str, max_length: int) -> TokenizedText:
        """Ids of a prompt, at most `max_length` of them with the end token.

        Raises:
          InputError: the prompt is empty, is no Unicode, has no word that the vocabulary knows, or
            more than half of its letters are unknown.
        """
        read = self.read(text, max_length)
        require_words(readable(text, self.is_known)[0], self.is_known)
        return read

    def read(self, text: str, max_length: int) -> TokenizedText:
        """The same for any text, however little of it is known.

        Raises:
          InputError: the text is empty or no Unicode.
        """
        if any("\ud800" <= character <= "\udfff" for character in text):
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"the prompt '{shown}' is not valid UTF-8; give it in UTF-8")
        lost: list[str] = []
        if not self.is_known(text):
            text, lost = readable(text, self.is_known)
        ids = self._processor.encode(text)
        if not ids:
            what = f"holds only {' '.join(lost)!r}, which is unknown" if lost else "is empty"
            raise InputError(f"the prompt {what}; write for example '58 years old female: ...'")
        kept = max_length - 1
        words = text.split()
        fitting = len(words)
        while len(ids) > kept and len(self._processor.encode(" ".join(words[:fitting]))) > kept:
            fitting -= 1
        return TokenizedText(
            np.asarray([*ids[:kept], EOS_ID], np.int32),
            " ".join(words[fitting:]),
            (*unknown_words(text, self.is_known), *lost),
        )

    def encode_batch(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        """Int32 [len(texts), max_length], padded with 0; longer texts are cut."""
        return pad_ids([self.read(text, max_length).ids for text in texts], max_length)


def pad_ids(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Ids of several texts, each at most `length`: int32 [texts, length], padded with 0."""
    batch = np.full((len(rows), length), PAD_ID, np.int32)
    for padded, ids in zip(batch, rows, strict=True):
        padded[: len(ids)] = ids
    return batch


def train_vocabulary(sentences: Iterable[str], path: str | Path, size: int) -> None:
    """Train a byte-pair vocabulary of at most `size` pieces and write it to `path`.

    Byte pairs, because reports repeat few words: SentencePiece's unigram model seeds its pieces
    with substrings that several different words share, so that "upper" itself is never one.
    Case is folded and digits stand alone, because neither the case of a report nor the pairing of
    an age's digits carries meaning that a small vocabulary should spend pieces on.

    Raises:
      InputError: SentencePiece cannot build it, for instance because `size` is below the number
        of distinct characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            split_digits=True,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            num_threads=1,  # the same sentences give the same bytes
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"cannot train a vocabulary of {size} pieces: {error}") from None
    Path(path).write_bytes(model.getvalue())
