"""Seconds and memory of every network, beside the PyTorch packages with the same arithmetic.

    python -m launch.benchmark --out benchmarks/cpu.json

`__main__` leads; each measurement runs in a process of its own (`worker`), which holds either our
program (`ours`) or the peer's (`peers`). Both read the weights and inputs that `prepare` wrote.
"""
