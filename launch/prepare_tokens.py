"""`launch.prepare --tokens`: what MaskGIT trains on, computed once.

Token ids of every prepared volume and, if a text encoder is given, the embedding of its report:
exactly what training would compute in every step.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from gct_jax.errors import ConfigError
from launch.views import finish, open_view

NO_REPORT = "no report"
ROWS = 4  # volumes of one depth that are encoded together


def run(options: argparse.Namespace) -> None:
    """Write this machine's shards of tokens.

    Raises:
      GctError: something was refused.
    """
    volumes, components = open_view("--tokens", options.tokens, options)

    from data_pipelines.derived import derived_ledger, read_cases, text_of
    from data_pipelines.features import id_type, serialize, token_features
    from gct_jax.models.token_grid import token_grid
    from gct_jax.provenance import bytes_identity, identity
    from gct_jax.runtime.numerics import fixed_numerics

    codec, t5, tokenizer = components.config.ctvit, components.config.t5, components.tokenizer
    assert codec is not None  # its variables are there
    about: dict[str, Any] = {
        "kind": "tokens",
        "codec": identity(components.variables["ctvit"]),
        "codebook_size": codec.codebook_size,
        "text_encoder": "",
        "tokenizer": "",
        "text_width": 0,
    }
    frames, rows, columns = token_grid(
        *volumes.about["shape"],
        patch_size=codec.patch_size,
        temporal_patch_size=codec.temporal_patch_size,
    )
    record_bytes = 2 * frames * rows * columns + 2000
    embed = None
    if "t5" in components.variables and t5 is not None:
        if tokenizer is None:
            raise ConfigError("the text encoder has no tokenizer.model beside it")
        about |= {
            "text_encoder": identity(components.variables["t5"]),
            "tokenizer": bytes_identity(tokenizer),
            "text_width": t5.dim,
        }
        record_bytes += 2 * t5.dim * t5.max_length
        embed = embedder(components)
    ledger = derived_ledger(options.out, volumes, about, record_bytes)
    missing = ledger.missing((options.shard, options.shards))
    features = token_features(about["text_width"], codec.codebook_size)
    dtype = id_type(codec.codebook_size)

    def entries(encoded: tuple[dict, Any]) -> Iterator[tuple[Any, Any]]:
        case, ids = encoded
        name, report = text_of(case, "case"), text_of(case, "report")
        if not report:
            yield name, NO_REPORT
            return
        example = {
            "ids": ids.astype(dtype),
            "report": report,
            "case": name,
            "patient": text_of(case, "patient"),
        }
        if embed is not None:
            example["text"] = embed(report)
        yield serialize(features, example), {"case": name, "slices": len(ids)}

    with fixed_numerics():
        encode = encoder(components)
        # Shard by shard, so that a case's neighbours are the same after any interruption.
        tokens = (encode_all(read_cases(volumes, [shard]), encode) for shard in missing)
        ledger.write_all(missing, itertools.chain.from_iterable(tokens), entries, "tokens")
    finish(options.out, ledger)


def encode_all(cases: Iterator[dict], encode: Callable) -> Iterator[tuple[dict, Any]]:
    """Each case with its token ids; some of one depth, one after the other, are encoded at once."""
    for _, alike in itertools.groupby(cases, lambda case: case["volume"].shape):
        while together := list(itertools.islice(alike, ROWS)):
            yield from zip(together, encode([case["volume"] for case in together]), strict=True)


def encoder(components: Any) -> Callable[[list], list]:
    """Volumes [d, h, w, 1] of one depth, at most `ROWS`, -> their ids int32 [t, h, w]."""
    import jax
    import numpy as np

    from gct_jax.components import build_component

    module: Any = build_component(components.config, "ctvit")
    variables = components.variables["ctvit"]
    function = jax.jit(lambda volume: module.apply(variables, volume, method="encode"))

    def encode(rows: list) -> list:
        # A batch is filled up, so that every case is encoded by the same program.
        whole = np.stack([*rows, *[rows[-1]] * (ROWS - len(rows))])
        return list(np.asarray(function(whole), np.int32)[: len(rows)])

    return encode


def embedder(components: Any) -> Callable[[str], Any]:
    """A report -> its embedding, float32 [tokens, width] as the text encoder makes it."""
    import numpy as np

    from gct_jax.sampling.cascade import embed_text
    from gct_jax.text import Tokenizer

    t5, variables = components.config.t5, components.variables["t5"]
    tokenizer = Tokenizer(components.tokenizer)

    @functools.lru_cache(maxsize=64)  # reconstructions of a scan share a report
    def embed(report: str) -> Any:
        ids = tokenizer.encode_batch([report], max_length=t5.max_length)
        text = embed_text(variables, ids, config=components.config)
        return np.asarray(text[0], np.float32)[: int((ids > 0).sum())]

    return embed
