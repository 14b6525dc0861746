"""The tokenizer: T5's conventions, cutting, and training of a vocabulary."""

import numpy as np
import pytest
import sentencepiece

from gct_jax.errors import InputError, ModelFolderError
from gct_jax.text import EOS_ID, Tokenizer, train_vocabulary

SENTENCES = [
    f"{age} years old {sex}: {size} {side} pleural effusion. {more}"
    for age in range(20, 90)
    for sex in ("male", "female")
    for size, side in (("Large", "left"), ("Small", "right"), ("Moderate", "bilateral"))
    for more in ("Cardiomegaly.", "No consolidation.")
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_vocabulary(SENTENCES, path, 90)
    return path


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return Tokenizer.load(vocabulary)


def test_ids_are_sentencepiece_ids_and_the_end_token(vocabulary, tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    for text in SENTENCES[::50]:
        encoded = tokenizer.encode(f"  {text}\n", 64)
        assert encoded.ids.tolist() == [*processor.encode(text), EOS_ID]
        assert encoded.truncated_text == ""
        assert processor.decode(encoded.ids.tolist()) == text.lower()


def test_no_word_of_the_reports_is_unknown(tokenizer):
    assert not any((tokenizer.encode(text, 96).ids == 2).any() for text in SENTENCES)


def test_words_of_the_reports_are_pieces(tmp_path):
    train_vocabulary(SENTENCES, tmp_path / "tokenizer.model", 200)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = processor.encode("large left pleural effusion", out_type=str)
    assert pieces == ["▁large", "▁left", "▁pleural", "▁effusion"]


def test_case_does_not_matter(tokenizer):
    text = SENTENCES[0]
    np.testing.assert_array_equal(
        tokenizer.encode(text.upper(), 96).ids, tokenizer.encode(text, 96).ids
    )


def test_cut_text_is_reported_in_whole_words(tokenizer):
    text = "58 years old FEMALE: Large left pleural effusion.  Cardiomegaly."
    whole = tokenizer.encode(text, 96).ids
    for max_length in range(2, len(whole)):
        ids, cut = tokenizer.encode(text, max_length)
        assert ids.tolist() == [*whole[: max_length - 1], EOS_ID]
        assert cut
        assert " ".join(text.split()).endswith(cut)
        kept = " ".join(text.split()).removesuffix(cut)
        assert len(kept.split()) + len(cut.split()) == len(text.split())
        if kept:
            assert len(tokenizer.encode(kept, 96).ids) <= max_length
    assert tokenizer.encode(text, len(whole)).truncated_text == ""


def test_batch_is_padded_with_zero(tokenizer):
    texts = [SENTENCES[0], "Cardiomegaly."]
    batch = tokenizer.encode_batch(texts, 48)
    assert batch.shape == (2, 48)
    assert batch.dtype == np.int32
    for row, text in zip(batch, texts, strict=True):
        ids = tokenizer.encode(text, 48).ids
        np.testing.assert_array_equal(row[: len(ids)], ids)
        assert not row[len(ids) :].any()


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_empty_prompt_is_refused(tokenizer, text):
    with pytest.raises(InputError, match="prompt is empty"):
        tokenizer.encode(text, 96)


def test_training_is_reproducible(vocabulary, tmp_path):
    train_vocabulary(SENTENCES, tmp_path / "again.model", 90)
    assert (tmp_path / "again.model").read_bytes() == vocabulary.read_bytes()


def test_too_small_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match="vocabulary of 5 pieces"):
        train_vocabulary(SENTENCES, tmp_path / "small.model", 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept_bytes", [0, 100])
def test_damaged_and_foreign_models_are_refused(vocabulary, tmp_path, kept_bytes):
    with pytest.raises(ModelFolderError, match=r"cannot read tokenizer .*absent\.model"):
        Tokenizer.load(tmp_path / "absent.model")
    damaged = tmp_path / "damaged.model"
    damaged.write_bytes(vocabulary.read_bytes()[:kept_bytes])
    with pytest.raises(ModelFolderError, match=r"damaged\.model is not a SentencePiece model"):
        Tokenizer.load(damaged)
    foreign = tmp_path / "foreign.model"
    with foreign.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=file, vocab_size=50, minloglevel=2
        )
    with pytest.raises(ModelFolderError, match=r"pad, eos, unk = \(-1, 2, 0\)"):
        Tokenizer.load(foreign)
