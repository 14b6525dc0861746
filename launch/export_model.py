"""Join trained stages to one model folder.

    python -m launch.export_model out/ctvit out/maskgit out/superres --out my_model

Takes training folders (averaged weights of their newest checkpoints) and model folders; where two
have the same part, the later one counts.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.export_model", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--weights", default="float16", choices=("float16", "bfloat16", "float32"))
    options = parser.parse_args(arguments)

    def command() -> None:
        require_extras("train")
        export(options.folders, options.out, options.weights)

    return exit_code("launch.export_model", command)


def export(folders: list[Path], out: Path, weight_dtype: str) -> None:
    """Write the model folder `out`; parts that no folder has are absent from it."""
    from gct_jax.model_folder import save_model
    from gct_jax.parts import CONFIG_FIELD
    from gct_jax.training.stages import join_parts, load_parts

    parts = join_parts(load_parts(folders[-1]).config, folders)
    absent: dict[str, Any] = {
        field: None for part, field in CONFIG_FIELD.items() if part not in parts.variables
    }
    save_model(
        out,
        dataclasses.replace(parts.config, **absent),
        parts.variables,
        parts.tokenizer,
        license_text=license_text(),
        weight_dtype=weight_dtype,
    )
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {', '.join(parts.variables)}; {size / 1e6:.1f} MB")


def license_text() -> str:
    """The project's own licence, under which weights trained on the phantom are given away."""
    return (Path(__file__).parents[1] / "LICENSE").read_text()


if __name__ == "__main__":
    sys.exit(main())
