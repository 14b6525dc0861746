"""`convert`: weight files of other programs to a model folder."""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gct_jax.config import ModelConfig, literal, override
from gct_jax.errors import ConfigError, InputError
from gct_jax.notes import tell
from gct_jax.runtime.files import replace_files_when_done
from gct_jax.runtime.stopping import deferred

if TYPE_CHECKING:
    from gct_jax.interop.generatect.files import ReferenceFile
    from gct_jax.text import Tokenizer

KINDS = {
    "ctvit": ("ctvit",),
    "transformer": ("transformer", "maskgit"),
    "superres": ("superres",),
    "critic": ("token_critic", "self_critic"),
    "quantizer": ("quantizer",),
}
FREE_FIELDS = ("name", "description", "volume.", "diffusion.", "sampling.", "t5.max_length")
CRITICS = ("token_critic", "self_critic")
ALONE = (*CRITICS, "quantizer")  # parts of a network in files of their own
WITH_COPIES = ("ctvit", "transformer", "superres", "critic")
TOKENIZER_NAMES = ("spiece.model", "tokenizer.model")
LICENSE_TEXT = "These weights were converted from {}. The licence of those files applies.\n"
NOT_IN_WEIGHTS = """\
not in the weights, with the published system's values as defaults; change them with
--set FIELD=VALUE:
  volume.slices, volume.image_size, volume.slice_spacing_mm, volume.pixel_spacing_mm
  diffusion.image_size, .objective, .noise_schedule, .low_res_noise_schedule, ...
  sampling.steps, .temperature, .guidance, .superres_steps, .superres_guidance, ...
  t5.max_length; ctvit.channels (without a discriminator)
  ctvit.patch_size (square unless given, for instance '(16, 12)' for height and width)
  superres.resnet_groups, .cosine_sim_attn, .scale_skip_connection, .self_cond,
  .cond_images_channels; .use_linear_cross_attn (True, or per level '(True, False)');
  .attn_dim_head (where no level has softmax attention)
what was assumed is printed. Of a trainer's checkpoint the averaged (EMA) weights are used; --copy
takes others.
"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("convert", help="published weights to a model folder")
    sources = parser.add_subparsers(required=True, metavar="generatect")
    generatect = sources.add_parser(
        "generatect",
        help="PyTorch GenerateCT files, T5X and Hugging Face T5",
        description="Makes a model folder from any of these files. All sizes are read from the "
        "weights; what the model does not use is kept aside for `export`.",
        epilog=NOT_IN_WEIGHTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    weight_file = {"type": Path, "metavar": "FILE"}
    generatect.add_argument("--ctvit", **weight_file, help="CT-ViT, .pt or .safetensors")
    generatect.add_argument("--transformer", **weight_file, help="MaskGIT with its CT-ViT")
    generatect.add_argument(
        "--superres", **weight_file, help="U-Net, or a trainer's checkpoint with averaged weights"
    )
    generatect.add_argument(
        "--t5", type=Path, metavar="PATH", help="T5 1.1: a T5X checkpoint or a Hugging Face folder"
    )
    generatect.add_argument(
        "--tokenizer", **weight_file, help="SentencePiece model (spiece.model beside the T5)"
    )
    generatect.add_argument(
        "--critic",
        **weight_file,
        help="a token critic or self critic alone; with --transformer, generating uses it",
    )
    generatect.add_argument(
        "--quantizer", **weight_file, help="a codebook alone; put beside the model's weights"
    )
    generatect.add_argument(
        "--copy",
        metavar="averaged|online|NAME",
        help="which copy of the weights to take from a trainer's checkpoint (averaged)",
    )
    generatect.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    generatect.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="see below; repeatable"
    )
    generatect.add_argument(
        "--weights", default="float32", choices=("float32", "float16", "bfloat16")
    )
    generatect.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert; nothing is written unless everything is.

    Raises:
      GctError: a file is unusable, or the parts do not fit together.
    """
    sources = [p for p in (*_weight_files(arguments).values(), arguments.t5) if p is not None]
    if not sources:
        raise InputError(
            "give at least one of --ctvit, --transformer, --superres, --t5, --critic, --quantizer"
        )
    assignments = _parse_assignments(arguments.set)

    with deferred():
        from gct_jax.interop.generatect.files import unused
        from gct_jax.interop.generatect.set_aside import write_beside, write_set_aside
        from gct_jax.model_folder import save_model
        from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("gct")

    files = _use_one_ctvit(_read_files(arguments, assignments))
    config: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    beside = []
    for file in files:
        if file.kind == "quantizer" or (file.kind == "token_critic" and "maskgit" not in variables):
            beside.append(file)
        elif file.kind in CRITICS:
            _add_critic(file, config, variables)
        else:
            config |= file.config
            variables |= file.variables
    tokenizer_bytes = None
    if arguments.t5 is not None:
        tokenizer = _find_tokenizer(arguments)
        config["t5"], variables["t5"] = read_t5(arguments.t5)
        if tokenizer.size > config["t5"].vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.size} pieces, {arguments.t5} only "
                f"{config['t5'].vocab_size} embeddings; give the T5's own with --tokenizer"
            )
        tokenizer_bytes = tokenizer.model_bytes
    names = ", ".join(path.name for path in sources)
    model = ModelConfig(
        name="generatect",
        description=f"converted from {names}",
        ctvit=config.get("ctvit"),
        maskgit=config.get("maskgit"),
        critic=config.get("critic"),
        t5=config.get("t5"),
        superres=config.get("superres"),
    )
    model = override(model, [text for text in arguments.set if text.startswith(FREE_FIELDS)])
    with replace_files_when_done(arguments.out) as folder:
        save_model(
            folder,
            model,
            variables,
            tokenizer_bytes,
            license_text=LICENSE_TEXT.format(names),
            weight_dtype=arguments.weights,
            provenance=_provenance(files, variables, tokenizer_bytes),
        )
        for file in beside:
            write_beside(folder, file)
        kept = [unused(file) if file.kind in ALONE else file for file in files]
        write_set_aside(folder, kept)
    for file in beside:
        tell(f"the {file.kind} is kept beside the model, which does not use it")
    _report(arguments.out, model, variables, files, arguments.set)


def read_t5(path: Path) -> tuple[Any, dict[str, Any]]:
    """Config and variables of a T5 encoder in any of the formats known here.

    Raises:
      ModelFolderError: the path holds neither format, or a model of another family.
    """
    if (path / "config.json").is_file():
        from gct_jax.interop.huggingface import t5_from_huggingface

        return t5_from_huggingface(path)
    from gct_jax.interop.t5x import t5_from_t5x

    return t5_from_t5x(path)


def _weight_files(arguments: argparse.Namespace) -> dict[str, Path | None]:
    return {option: getattr(arguments, option) for option in KINDS}


def _parse_assignments(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Values for the networks themselves: {"superres": .., "ctvit": ..}; the others are checked."""
    values: dict[str, dict[str, Any]] = {"superres": {}, "ctvit": {}}
    for text in assignments:
        field, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set {text} is not of the form FIELD=VALUE")
        part, _, name = field.strip().partition(".")
        if part == "unet":
            tell("--set unet.* is called --set superres.* now")
            part = "superres"
        if part in values:
            values[part][name] = literal(value.strip())
        elif not field.startswith(FREE_FIELDS):
            raise ConfigError(f"--set {field}: this field is unknown or read from the weights")
    return values


def _read_files(
    arguments: argparse.Namespace, assignments: Mapping[str, Mapping[str, Any]]
) -> list["ReferenceFile"]:
    from gct_jax.interop.generatect.files import read_reference

    files = []
    for option, path in _weight_files(arguments).items():
        if path is None:
            continue
        file = read_reference(
            path,
            ctvit_options=assignments["ctvit"],
            unet_options=assignments["superres"],
            copy=arguments.copy if option in WITH_COPIES else None,
        )
        if file.kind not in KINDS[option]:
            raise InputError(f"--{option} {path}: this is a {file.kind} file")
        files.append(file)
    return files


def _add_critic(file: "ReferenceFile", config: dict[str, Any], variables: dict[str, Any]) -> None:
    """Add what a critic's own file holds to the components.

    Raises:
      InputError: there is a critic already, or a self critic's MaskGIT is another one than that of
        the transformer.
    """
    from gct_jax.interop.generatect.files import critic_component, first_difference

    if "critic" in config:
        raise InputError("--critic: the --transformer holds a critic of its own; give only one")
    new_config, new_variables = critic_component(file)
    if "maskgit" in new_variables and "maskgit" in variables:
        difference = first_difference(variables["maskgit"], new_variables["maskgit"])
        if difference is not None:
            raise InputError(
                "--critic scores another MaskGIT than that of --transformer, first in "
                f"{difference}; give the two that were trained together"
            )
    config |= new_config
    variables |= new_variables


def _use_one_ctvit(files: list["ReferenceFile"]) -> list["ReferenceFile"]:
    """The same files, of which at most one brings a CT-ViT that counts.

    A transformer file contains the CT-ViT that it was trained with, and the original samples with
    that one; if the CT-ViT's own file holds another, it is kept without being used.
    """
    from gct_jax.interop.generatect.files import first_difference, unused

    if [file.kind for file in files[:2]] != ["ctvit", "transformer"]:
        return files
    alone, whole = files[:2]
    difference = first_difference(alone.variables["ctvit"], whole.variables["ctvit"])
    if difference is None:
        return files
    print(
        f"note: --ctvit and --transformer hold different CT-ViTs (first in {difference}); the "
        "transformer's is used, as the original does, and the other is only kept for export"
    )
    return [unused(alone), *files[1:]]


def _assumed(model: ModelConfig, files: list["ReferenceFile"], assignments: list[str]) -> list[str]:
    """For each field that no file tells and no option gave: "--set FIELD=VALUE"."""
    given = {text.partition("=")[0].strip() for text in assignments}
    fields = {
        f"{part}.{name}": value
        for file in files
        for part, values in file.assumed.items()
        for name, value in values.items()
    }
    for section in ("diffusion", "sampling"):
        if model.superres is not None or (section == "sampling" and model.maskgit is not None):
            values = dataclasses.asdict(getattr(model, section))
            fields |= {f"{section}.{name}": value for name, value in values.items()}
    if model.t5 is not None:
        fields["t5.max_length"] = model.t5.max_length
    fields |= {f"volume.{n}": v for n, v in dataclasses.asdict(model.volume).items()}
    shown = {name: value for name, value in fields.items() if name not in given}
    return [f"--set '{name}={value}'" for name, value in shown.items()]


def _find_tokenizer(arguments: argparse.Namespace) -> "Tokenizer":
    from gct_jax.text import Tokenizer

    beside = arguments.t5 if arguments.t5.is_dir() else arguments.t5.parent
    candidates = [arguments.tokenizer] if arguments.tokenizer else []
    candidates += [path for name in TOKENIZER_NAMES if (path := beside / name).is_file()]
    if not candidates:
        raise InputError(f"no {' or '.join(TOKENIZER_NAMES)} in {beside}: give --tokenizer FILE")
    return Tokenizer.load(candidates[0])


def _provenance(
    files: list["ReferenceFile"], variables: Mapping[str, Any], tokenizer_bytes: bytes | None
) -> Any:
    """What belongs together: a transformer's file says which CT-ViT, the call which T5."""
    from gct_jax.provenance import TOKENIZER, Provenance, bytes_identity, identity

    identities = {part: identity(tree) for part, tree in variables.items()}
    if tokenizer_bytes is not None:
        identities[TOKENIZER] = bytes_identity(tokenizer_bytes)
    text = {name: identities[name] for name in ("t5", TOKENIZER) if name in identities}
    readers = [part for part in ("maskgit", "critic", "superres") if part in identities]
    trained_with: dict[str, dict[str, str]] = {part: dict(text) for part in readers}
    if any(file.kind == "transformer" for file in files):
        trained_with["maskgit"]["ctvit"] = identities["ctvit"]
    if "critic" in trained_with:
        trained_with["critic"]["maskgit"] = identities["maskgit"]
    return Provenance(identities, trained_with)


def _report(
    folder: Path,
    model: ModelConfig,
    variables: Mapping[str, Any],
    files: list["ReferenceFile"],
    assignments: list[str],
) -> None:
    import jax

    parts = []
    for part, tree in variables.items():
        numbers = sum(leaf.size for leaf in jax.tree.leaves(tree))
        parts.append(f"{part} ({numbers:,} numbers)")
    print(f"{folder}: {', '.join(parts)}")
    volume = model.volume
    print(
        f"assumed, see --set: {volume.slices} slices of {volume.image_size} x {volume.image_size}, "
        f"{volume.slice_spacing_mm} x {volume.pixel_spacing_mm} mm"
    )
    for text in _assumed(model, files, assignments):
        print(f"assumed: {text}")
    for file in files:
        for part, prefix in file.prefixes.items() if file.unchosen else ():
            others = ", ".join(repr(name) for name in file.unchosen)
            print(f"{part}: weights {prefix!r} are used, not {others}; --copy takes others")
        groups = Counter(name.replace("/", ".").split(".")[0] for name in file.set_aside)
        if groups:
            kept = ", ".join(f"{name} {count}" for name, count in groups.items())
            print(f"set aside from {file.kind}, tensors not used: {kept}")
