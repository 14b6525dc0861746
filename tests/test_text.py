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
        ids, cut, _ = tokenizer.read(text, max_length)
        assert ids.tolist() == [*whole[: max_length - 1], EOS_ID]
        assert cut
        assert " ".join(text.split()).endswith(cut)
        kept = " ".join(text.split()).removesuffix(cut)
        assert len(kept.split()) + len(cut.split()) == len(text.split())
        if kept:
            assert len(tokenizer.read(kept, 96).ids) <= max_length
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


def pieces(tokenizer, text):
    return tokenizer.encode(text, 96).ids.tolist()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Large (left) pleural effusion", "Large left pleural effusion"),
        ("Large [left] pleural effusion", "Large left pleural effusion"),
        ("Large “left” pleural effusion", "Large left pleural effusion"),
        ("Large left—pleural effusion", "Large left pleural effusion"),
        ("Ｌａｒｇｅ left pleural effusion", "Large left pleural effusion"),
        ("Large left\u200b pleural\u00a0effusion", "Large left pleural effusion"),
        ("Large_left;pleural/effusion", "Large left pleural effusion"),
    ],
)
def test_punctuation_that_is_unknown_separates(tokenizer, written, read):
    assert pieces(tokenizer, written) == pieces(tokenizer, read)
    assert tokenizer.encode(written, 96).unknown == ()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Large left 胸部 effusion", ("胸部",)),
        ("Large left effusion 50%, <3", ("%", "<")),
        ("Épanchement: large left effusion. Épanchement", ("Épanchement:", "Épanchement")),
        ("Large left effusion", ()),
    ],
)
def test_what_stays_unknown_is_named(tokenizer, text, unknown):
    assert tokenizer.encode(text, 96).unknown == unknown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("胸部所見 left", "knows 4 of the prompt's 8 letters"),
        ("胸部所見です left", "knows 4 of the prompt's 10 letters"),
        ("( 3 ) a", "no word is left"),
        ("...", "no word is left"),
        ("caf\udce9 left", "not valid UTF-8"),
        ("", "empty"),
    ],
)
def test_a_prompt_of_which_little_is_left_is_refused(tokenizer, text, message):
    if "8 letters" in message:  # exactly half is enough
        assert tokenizer.encode(text, 96).unknown == ("胸部所見",)
        return
    with pytest.raises(InputError, match=message):
        tokenizer.encode(text, 96)


def test_texts_of_training_are_read_however_little_is_known(tokenizer):
    assert tokenizer.encode_batch(["胸部所見"], 8).shape == (1, 8)


def test_what_a_vocabulary_holds_is_left_to_sentencepiece(tmp_path):
    """A vocabulary that knows these characters reads them as SentencePiece does, unnormalised."""
    sentences = [f"({side}) “effusion” — {n}%" for side in ("left", "right") for n in range(99)]
    train_vocabulary(sentences, tmp_path / "own.model", 60)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "own.model"))
    own = Tokenizer.load(tmp_path / "own.model")
    for text in sentences[::20]:
        assert own.encode(text, 96).ids.tolist() == [*processor.encode(text), EOS_ID]
        assert own.encode(text, 96).unknown == ()
