"""Join trained stages to one model folder.

    python -m launch.export_model out/ctvit out/maskgit out/superres --out my_model

Takes training folders (averaged weights of their newest checkpoints) and model folders; where two
have the same component, the later one counts.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras
from launch.options import folder_option


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.export_model", description=__doc__)
    parser.add_argument("folders", nargs="+", type=folder_option)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--weights", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument(
        "--allow-unfinished",
        action="store_true",
        help="take runs that have not reached their last step as they are",
    )
    options = parser.parse_args(arguments)

    def command() -> None:
        require_extras("train")
        export(options.folders, options.out, options.weights, options.allow_unfinished)

    return exit_code("launch.export_model", command)


def export(
    folders: list[Any], out: Path, weight_dtype: str, allow_unfinished: bool = False
) -> None:
    """Write the model folder `out`; components that no folder has are absent from it.

    Raises:
      GctError: a folder is unusable or its run unfinished, or two networks do not belong together.
    """
    from gct_jax.runtime.numerics import prepare_jax

    prepare_jax("launch.export_model")
    from gct_jax.components import COMPONENTS
    from gct_jax.model_folder import save_model
    from gct_jax.training.stages import join_components

    components = join_components(None, folders, allow_unfinished=allow_unfinished)
    absent: dict[str, Any] = {
        component: None for component in COMPONENTS if component not in components.variables
    }
    save_model(
        out,
        dataclasses.replace(components.config, **absent),
        components.variables,
        components.tokenizer,
        license_text=license_text(),
        weight_dtype=weight_dtype,
        provenance=components.provenance,
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {', '.join(components.variables)}; {size / 1e6:.1f} MB")
    lacking = [name for name in ("t5", "maskgit", "ctvit") if name not in components.variables]
    if lacking:
        print(
            f"note: generate needs {', '.join(lacking)} too; name the folders that have them",
            file=sys.stderr,
        )


def license_text() -> str:
    """The project's own licence, under which weights trained on the phantom are given away."""
    return (Path(__file__).parents[1] / "LICENSE").read_text()


if __name__ == "__main__":
    sys.exit(main())
