"""`launch.prepare --tokens`: what MaskGIT trains on, computed once.

Token ids of every prepared volume and, if a text encoder is given, the embedding of its report:
exactly what training would compute in every step.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

from gct_jax.errors import ConfigError
from launch.grids import require_grid
from launch.options import chosen_components

ROWS = 4  # volumes of one depth that are encoded together


def run(options: argparse.Namespace) -> None:
    """Write this machine's shards of tokens.

    Raises:
      GctError: something was refused.
    """
    from gct_jax.runtime.stopping import deferred

    with deferred():
        from tqdm import tqdm

        from data_pipelines.derived import derived_ledger
        from data_pipelines.features import id_type, serialize, token_features
        from data_pipelines.shard_reader import ShardFolder
        from gct_jax.models.token_grid import token_grid
        from gct_jax.provenance import bytes_identity, identity
        from gct_jax.runtime.numerics import fix_numerics, fixed_numerics, require_devices

    fix_numerics("launch.prepare")
    require_devices()
    components = chosen_components(options)
    if "ctvit" not in components.variables:
        raise ConfigError("--tokens needs CT-ViT: --from its folder")
    volumes = ShardFolder(str(options.tokens))
    about = volumes.about
    require_grid(components.config, about["shape"], about["spacing_mm"], volumes.path)
    codec, t5 = components.config.ctvit, components.config.t5
    assert codec is not None  # its variables are there
    embeds = "t5" in components.variables
    width = t5.dim if embeds and t5 is not None else 0
    tokenizer = components.tokenizer
    if embeds and tokenizer is None:
        raise ConfigError("the text encoder has no tokenizer.model beside it")
    about = {
        "kind": "tokens",
        "codec": identity(components.variables["ctvit"]),
        "codebook_size": codec.codebook_size,
        "text_encoder": identity(components.variables["t5"]) if embeds else "",
        "tokenizer": bytes_identity(tokenizer) if tokenizer and embeds else "",
        "text_width": width,
    }
    frames, rows, columns = token_grid(
        *volumes.about["shape"],
        patch_size=codec.patch_size,
        temporal_patch_size=codec.temporal_patch_size,
    )
    length = t5.max_length if t5 is not None else 0
    record_bytes = 2 * frames * rows * columns + 2 * width * length + 2000
    ledger = derived_ledger(options.out, volumes, about, record_bytes)
    share = (options.shard, options.shards)
    features, missing = token_features(width, codec.codebook_size), ledger.missing(share)
    encode, embed = encoder(components), embedder(components) if embeds else None
    bar = tqdm(total=sum(len(shard.cases) for shard in missing), unit="CT", disable=not missing)
    with fixed_numerics(), bar:
        for shard in missing:

            def contents(shard: Any = shard) -> Iterator[Any]:
                for case, ids in encoded(volumes, shard, encode):
                    bar.update()
                    report = case["report"].item().decode("utf-8")
                    name = case["case"].item().decode("utf-8")
                    if not report:
                        yield name, "no report"
                        continue
                    example: dict[str, Any] = {
                        "ids": ids.astype(id_type(codec.codebook_size)),
                        "report": report,
                        "case": name,
                        "patient": case["patient"].item(),
                    }
                    if embed is not None:
                        example["text"] = embed(report)
                    yield serialize(features, example), {"case": name, "slices": len(ids)}

            ledger.write(shard, contents())
    finish(options, ledger)


def encoded(volumes: Any, shard: Any, encode: Callable) -> Iterator[tuple[dict, Any]]:
    """Each case of a shard of volumes with its token ids, some of one depth at a time."""
    from data_pipelines.derived import read_cases

    waiting: list[dict] = []
    for case in read_cases(volumes, shard):
        if waiting and waiting[0]["volume"].shape != case["volume"].shape:
            yield from zip(waiting, encode([one["volume"] for one in waiting]), strict=True)
            waiting = []
        waiting.append(case)
        if len(waiting) == ROWS:
            yield from zip(waiting, encode([one["volume"] for one in waiting]), strict=True)
            waiting = []
    if waiting:
        yield from zip(waiting, encode([one["volume"] for one in waiting]), strict=True)


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


def finish(options: argparse.Namespace, ledger: Any) -> None:
    """The manifest when all shards are there, and a line on it."""
    left = len(ledger.missing())
    if left:
        print(f"{options.out}: {left} shards are missing, of other machines")
        return
    ledger.write_manifest()
    infos = [info for shard in ledger.shards if (info := ledger.info(shard)) is not None]
    records, rejected = (
        sum(info.records for info in infos),
        sum(len(info.rejected) for info in infos),
    )
    out = f", {rejected} left out" if rejected else ""
    print(f"{options.out}: {records} records{out}; data.source=shards data.folder={options.out}")
