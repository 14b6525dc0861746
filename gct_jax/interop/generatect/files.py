"""Weight files of the PyTorch reference as wholes: what one is, the networks in it, and the rest.

    ctvit        CTViT.state_dict(), with or without discriminator and perceptual network
    transformer  MaskGITTransformer.state_dict(): "ctvit.", "maskgit." and maybe "critic."
    superres     Superres.state_dict(), one U-Net's, or what the super-resolution trainer saves
    maskgit, token_critic, self_critic, quantizer   the state dict of that module alone

Whatever is no weight of ours (optimiser, perceptual network, tensors that nothing reads) is kept in
`set_aside`, so that `reference_document` can give the same file back.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from gct_jax.config import CriticConfig, MaskGitConfig, from_dict
from gct_jax.errors import GctError, ModelFolderError
from gct_jax.interop.generatect import ctvit, maskgit, unet, unet_config
from gct_jax.interop.generatect.copies import BUFFERS, choose_copy, name_averages
from gct_jax.interop.generatect.documents import flatten_document, restore_document
from gct_jax.interop.generatect.layout import Layout, Params, State, sizes, without_prefix
from gct_jax.interop.generatect.unet_config import NotInferable
from gct_jax.interop.weight_files import read_weight_file

# A parameter that only this network has, under whatever prefix; averages may lack buffers.
SIGNATURES = {
    "superres": "to_time_cond.0.weight",
    "maskgit": "continuous_pos_bias.net.2.weight",
    "ctvit": "spatial_rel_pos_bias.net.2.weight",
    "self_critic": "to_pred.0.weight",
    "token_critic": "to_logits.0.weight",
    "quantizer": "_codebook.embed",
}
LAYOUTS: dict[str, Callable[[Any], Layout]] = {
    "superres": unet.unet_layout,
    "maskgit": maskgit.maskgit_layout,
    "ctvit": ctvit.ctvit_layout,
    "critic": maskgit.critic_layout,
    "self_critic": maskgit.self_critic_layout,
    "token_critic": maskgit.token_critic_layout,
    "quantizer": lambda size: ctvit.codebook_layout(*size),
}
CRITICS = ("token_critic", "self_critic")
SINGLE_KINDS = ("maskgit", "ctvit", "token_critic", "quantizer")
ASSUMPTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "ctvit": ctvit.assumptions,
    "superres": unet_config.assumptions,
}
COMPANIONS = {"transformer": ("critic.maskgit.",), "superres": ("unets.",)}
CRITIC = "critic."  # what a transformer's file puts before its critic's tensors


@dataclasses.dataclass(frozen=True)
class ReferenceFile:
    """One weight file of the reference.

    Attributes:
      kind: one of those listed at the top of this module.
      config: config of each network in the file: `CTViTConfig` under "ctvit", `MaskGitConfig` under
        "maskgit" and in a critic's own file, `CriticConfig` under "critic" of a transformer's file,
        `UNetConfig` under "superres".
      variables: float32 variables of the Flax module of each network.
      prefixes: what the file puts before the names of each network's tensors.
      set_aside: all other tensors by name; nested names are joined with "/".
      structure: nesting and plain values of a file that is more than one dict of tensors.
      assumed: for each network, the fields of its config that the file does not tell.
      unchosen: prefixes of further copies of the weights, for instance those that are not averaged.
    """

    kind: str
    config: dict[str, Any]
    variables: dict[str, Params]
    prefixes: dict[str, str]
    set_aside: dict[str, np.ndarray]
    structure: Any = None
    assumed: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    unchosen: tuple[str, ...] = ()


def read_reference(
    path: str | Path,
    *,
    ctvit_options: Mapping[str, Any] | None = None,
    unet_options: Mapping[str, Any] | None = None,
    copy: str | None = None,
) -> ReferenceFile:
    """Read a `.pt` or `.safetensors` file; all sizes come from the tensors' names and shapes.

    Args:
      path: the file. Of a trainer's checkpoint, the averaged (EMA) weights are taken.
      ctvit_options: fields of `CTViTConfig` named in `ctvit.NotInferable`, where they differ from
        what is assumed.
      unet_options: the same of `UNetConfig`, named in `unet_config.NotInferable`.
      copy: "averaged", "online" or the prefix of the copy to read, where a file holds several.

    Raises:
      ConfigError: an option that is unknown or out of its range.
      GctError: the file cannot be read, is of no known kind, holds copies that cannot be told
        apart, or a tensor in it is missing, unexpected, not finite or of the wrong shape or type.
        The message names file and tensor.
    """
    options = {
        "ctvit": _checked_options(ctvit.NotInferable, "ctvit", ctvit_options or {}),
        "superres": _checked_options(NotInferable, "superres", unet_options or {}),
    }
    document = read_weight_file(path)
    try:
        tensors, structure = name_averages(*flatten_document(document))
        kind, prefixes, unchosen = _recognise(tensors, copy)
        _require_companions(tensors, kind, prefixes, structure)
        config, variables, assumed = {}, {}, {}
        set_aside = dict(tensors)
        for component, prefix in prefixes.items():
            state = _state(tensors, prefix, unchosen, component)
            given = options.get(component, {})
            config[component], variables[component] = _convert(component, state, given)
            if component in ASSUMPTIONS:
                assumed[component] = ASSUMPTIONS[component](state, config[component], given)
            for name in LAYOUTS[component](config[component]).names():
                set_aside.pop(prefix + name, None)
        if "critic" in config and config["critic"].kind == "self":
            config["critic"] = self_critic_config(config["maskgit"])
    except GctError as error:
        text = str(error).replace("UNetConfig.", "superres.").replace("CTViTConfig.", "ctvit.")
        raise ModelFolderError(f"{path}: {text}") from None
    for name in list(set_aside):  # a self critic saves the whole MaskGIT a second time
        original = name.removeprefix("critic.")
        if name.startswith("critic.maskgit.") and np.array_equal(
            set_aside[name], tensors.get(original, ())
        ):
            del set_aside[name]
    return ReferenceFile(
        kind, config, variables, prefixes, set_aside, structure, assumed, tuple(unchosen)
    )


def self_critic_config(maskgit: MaskGitConfig) -> CriticConfig:
    """The component "critic" that scores the hidden states of this MaskGIT."""
    return CriticConfig(**dataclasses.asdict(maskgit), kind="self")


def critic_component(file: ReferenceFile) -> tuple[dict[str, Any], dict[str, Params]]:
    """Configs and variables of the components that a critic's own file holds: "critic", and
    "maskgit" if it is a self critic."""
    config, variables = file.config[file.kind], file.variables[file.kind]
    if file.kind == "token_critic":
        critic = CriticConfig(**dataclasses.asdict(config), kind="token")
        return {"critic": critic}, {"critic": variables}
    params = variables["params"]
    return (
        {"maskgit": config, "critic": self_critic_config(config)},
        {
            "maskgit": {"params": params["maskgit"]},
            "critic": {"params": {"to_score": params["to_score"]}},
        },
    )


def _checked_options(cls: type, where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, if `cls` has such fields and they have these ranges."""
    checked: Any = from_dict(cls, options, where)
    return {name: getattr(checked, name) for name in options}


def reference_document(file: ReferenceFile) -> Any:
    """The inverse of `read_reference`: what the file holds, to be written as `.pt`."""
    tensors = reference_tensors(file)
    return tensors if file.structure is None else restore_document(file.structure, tensors)


def reference_tensors(file: ReferenceFile) -> dict[str, np.ndarray]:
    """All tensors of the file by name, nested names joined with "/".

    Tensors that were not set aside, as in a model that was not imported, get the values that the
    reference gives them when it is built.
    """
    tensors = dict(file.set_aside)
    for component, prefix in file.prefixes.items():
        kept = without_prefix(file.set_aside, prefix)
        layout = LAYOUTS[component](file.config[component])
        state = layout.to_reference(file.variables[component], kept)
        tensors |= {prefix + name: value for name, value in state.items()}
    if "critic.to_pred.0.weight" in tensors:
        again = {f"critic.{name}": x for name, x in tensors.items() if name.startswith("maskgit.")}
        tensors = again | tensors
    return tensors


def unused(file: ReferenceFile) -> ReferenceFile:
    """The same file with all of its tensors set aside."""
    return dataclasses.replace(
        file, config={}, variables={}, prefixes={}, set_aside=reference_tensors(file)
    )


def _recognise(tensors: State, copy: str | None = None) -> tuple[str, dict[str, str], list[str]]:
    """The kind of a file, the prefix of each network in it, and those of the copies not chosen."""
    found = {kind: _prefixes(tensors, signature) for kind, signature in SIGNATURES.items()}
    ctvits = found["ctvit"]
    whole = [p.removesuffix("maskgit.") for p in found["maskgit"] if p.endswith("maskgit.")]
    whole = [prefix for prefix in whole if f"{prefix}ctvit." in ctvits]
    kinds: tuple[tuple[str, list[str], dict[str, str]], ...] = (
        ("superres", found["superres"], {"superres": ""}),
        ("self_critic", found["self_critic"], {"self_critic": ""}),
        ("transformer", whole, {"ctvit": "ctvit.", "maskgit": "maskgit."}),
        *((kind, found[kind], {kind: ""}) for kind in SINGLE_KINDS),
    )
    for kind, prefixes, inside in kinds:
        if prefixes:
            chosen = choose_copy(prefixes, copy)
            others = [prefix for prefix in prefixes if prefix != chosen]
            networks = {name: chosen + prefix for name, prefix in inside.items()}
            critics = (f"{chosen}{CRITIC}{SIGNATURES[name]}" for name in CRITICS)
            if kind == "transformer" and any(name in tensors for name in critics):
                networks["critic"] = chosen + CRITIC
            return kind, networks, others
    first = f", first {min(tensors)!r}" if tensors else ""
    raise ModelFolderError(
        f"no GenerateCT weights among its {len(tensors)} tensor(s){first}; these would be known by "
        f"one that ends in {', '.join(map(repr, SIGNATURES.values()))}"
    )


def _prefixes(tensors: State, signature: str) -> list[str]:
    """What stands before `signature`, but for critics and the discriminator inside a network."""
    found = {name.removesuffix(signature) for name in tensors if name.endswith(signature)}
    whole_names = {prefix for prefix in found if not prefix or prefix[-1] in "./"}
    inside = re.compile(r"(^|[./])(critic|discr)\.")
    outside = {prefix for prefix in whole_names if not inside.search(prefix)}
    return sorted(outside, key=lambda prefix: (len(prefix), prefix))


def _state(
    tensors: State, prefix: str, unchosen: list[str], component: str
) -> dict[str, np.ndarray]:
    """The tensors of one network; what an average leaves out (buffers) is that of another copy."""
    state = without_prefix(tensors, prefix)
    if component == "critic":  # a self critic's file repeats its MaskGIT
        state = {name: value for name, value in state.items() if not name.startswith("maskgit.")}
    for other in unchosen:
        ending = f"{component}." if prefix.endswith(f"{component}.") else ""
        for name, value in without_prefix(tensors, other + ending).items():
            if name.endswith(BUFFERS):
                state.setdefault(name, value)
    return state


def _require_companions(
    tensors: State, kind: str, prefixes: Mapping[str, str], structure: Any
) -> None:
    """Raise ModelFolderError for a tensor that is of no network and no known companion."""
    if structure is not None:
        return
    allowed = (*prefixes.values(), *COMPANIONS.get(kind, ()))
    unknown = sorted(name for name in tensors if not name.startswith(allowed))
    if unknown:
        raise ModelFolderError(
            f"the weights hold {len(unknown)} unexpected tensor(s), first {unknown[0]!r}; names "
            f"in a {kind} file start with {' or '.join(map(repr, allowed))}"
        )


def _convert(component: str, state: State, options: Mapping[str, Any]) -> tuple[Any, Params]:
    if component == "superres":
        return unet.unet_from_reference(state, **options)
    if component == "ctvit":
        return ctvit.ctvit_from_reference(state, **options)
    if component == "quantizer":
        size = sizes(state, "_codebook.embed", 3)[1:]
        return size, ctvit.codebook_layout(*size).from_reference(state)
    convert = {
        "maskgit": maskgit.maskgit_from_reference,
        "critic": maskgit.critic_from_reference,
        "token_critic": maskgit.token_critic_from_reference,
        "self_critic": maskgit.self_critic_from_reference,
    }[component]
    return convert(state)


def first_difference(variables: Params, others: Params) -> str | None:
    """Path of the first array that differs between two networks; None if all are equal."""
    ours, theirs = (flatten_dict(tree, sep=".") for tree in (variables, others))
    for name in sorted(ours | theirs):
        if name not in ours or not np.array_equal(ours[name], theirs.get(name, ())):
            return name
    return None
