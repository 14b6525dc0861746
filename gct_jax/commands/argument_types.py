"""Types of command-line options: text to a checked value, or one line that says what is wrong."""

import argparse
import contextlib

from gct_jax.config import LARGEST_SEED, LARGEST_WEIGHT, MOST_STEPS


def _whole_number(text: str, least: int, most: int) -> int:
    if not (text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
    return int(text)


def count(text: str) -> int:
    """A number of steps or slices."""
    return _whole_number(text, 1, MOST_STEPS)


def seed_number(text: str) -> int:
    """A random seed."""
    return _whole_number(text, 0, LARGEST_SEED)


def seed_list(text: str) -> list[int]:
    """Different random seeds, separated by commas."""
    seeds = [seed_number(part.strip()) for part in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"'{text}' names a seed twice")
    return seeds


def weight(text: str) -> float:
    """A guidance weight or a temperature."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= LARGEST_WEIGHT:
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to {LARGEST_WEIGHT:g}")
