"""One process of `launch.studies.meshes`: ADDRESS COUNT INDEX, the jobs as JSON on stdin."""

import json
import sys

from gct_jax.runtime.cluster import join
from launch import train


def main(address: str, count: str, index: str) -> None:
    """Train each job; the group of processes stays the same."""
    if int(count) > 1:
        join(f"{address},{count},{index}")
    for arguments in json.load(sys.stdin):
        train.run(train.parsed(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
