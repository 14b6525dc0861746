"""Which cases a batch holds: a function of (seed, step) alone.

Cases come from several folders k with weights w_k and have one of several depths b; a batch has one
depth, and of each folder as many rows as its weight says:

    share of depth b    f_b  = sum_k w_k n_kb / n_k                                       (1)
    rows from folder k  q_kb = w_k n_kb / n_k / f_b of a batch of depth b                 (2)

The depths follow each other in a shuffled cycle with the shares (1). With c_k the sum of (2) up to
folder k, times the batch's size, the t-th batch of depth b takes

    floor(c_k + u_t) - floor(c_(k-1) + u_t),   u_t = t / golden ratio mod 1               (3)

rows from folder k: one more or less than its share, which holds in the long run. Within folder and
depth every epoch is a permutation, and what is left of it that fills no batch is left out, so no
batch holds a case twice.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gct_jax.errors import ConfigError

LONGEST_CYCLE = 1000  # batches
GOLDEN = (math.sqrt(5) - 1) / 2
ROUNDING = 1e-9


class Row(NamedTuple):
    """A row of a batch: the number of a case within its folder, and the depth it is padded to."""

    folder: int
    case: int
    depth: int


class BatchPlan:
    """See the module's first lines.

    Args:
      depths: of each folder, int [cases]: the depth of each case, which its rows are padded to at
        least.
      weights: of the folders, above 0; () gives each folder the weight of its cases.
      batch_size: rows of a global batch.
      seed: of the order.

    Raises:
      ConfigError: a folder has too few cases for its share of a batch.
    """

    def __init__(
        self,
        depths: Sequence[np.ndarray],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
    ):
        if weights and len(weights) != len(depths):
            raise ConfigError(
                f"data.weights has {len(weights)} entries for {len(depths)} folders of shards"
            )
        self._size, self._seed = batch_size, seed
        shares = np.array(weights or [len(of) for of in depths], float)
        shares /= shares.sum()
        padded = _padded_depths(depths, shares, batch_size)
        self.depths = sorted({int(depth) for of in padded for depth in of})
        self.padded = padded
        self._cases = {
            (k, b): np.flatnonzero(of == b) for k, of in enumerate(padded) for b in self.depths
        }
        weight = np.array(
            [
                [shares[k] * len(self._cases[k, b]) / len(padded[k]) for k in range(len(padded))]
                for b in self.depths
            ]
        )
        self._rows = np.cumsum(weight / weight.sum(1, keepdims=True), 1) * batch_size
        self._rows[:, -1] = batch_size
        self._cycle = _cycle(weight.sum(1))

    def rows(self, step: int) -> list[Row]:
        """Of the global batch of a step."""
        number, place = divmod(step, int(self._cycle.sum()))
        order = _order(self._seed, number, tuple(self._cycle.tolist()))
        bucket = int(order[place])
        earlier = number * int(self._cycle[bucket]) + int((order[:place] == bucket).sum())
        moved = np.array([0.0, *self._rows[bucket]]) + earlier * GOLDEN % 1
        counts = np.diff(np.floor(moved + ROUNDING).astype(int))
        depth = self.depths[bucket]
        return [
            Row(folder, case, depth)
            for folder, count in enumerate(counts)
            for case in self._take(folder, bucket, earlier, int(count))
        ]

    def _take(self, folder: int, bucket: int, earlier: int, count: int) -> list[int]:
        cases = self._cases[folder, self.depths[bucket]]
        most = _most_rows(self._rows[bucket], folder)
        if not count:
            return []
        epoch, place = divmod(earlier, len(cases) // most)
        order = _permutation(self._seed, epoch, folder, self.depths[bucket], len(cases))
        first = place * most
        return cases[order[first : first + count]].tolist()


def _most_rows(ends: np.ndarray, folder: int) -> int:
    """The most rows that a folder gives to a batch whose rows end at `ends`."""
    return math.ceil(ends[folder] - (ends[folder - 1] if folder else 0.0) - 2 * ROUNDING)


def _padded_depths(
    depths: Sequence[np.ndarray], shares: np.ndarray, batch_size: int
) -> list[np.ndarray]:
    """The depth that each case is padded to: its own, or, where too few cases have that for a
    batch, a larger one."""
    padded = [np.array(of, int) for of in depths]
    for k, of in enumerate(padded):
        need = math.ceil(batch_size * shares[k] - 2 * ROUNDING)
        if len(of) < need:
            raise ConfigError(
                f"a batch takes up to {need} different cases from a folder of shards that has "
                f"{len(of)} for training; take a smaller loop.batch_size, or prepare more"
            )
    levels = sorted({int(depth) for of in padded for depth in of})
    while len(levels) > 1:
        short = [level for level in levels if not _enough(padded, shares, batch_size, level)]
        if not short:
            break
        level = short[0]
        at = levels.index(level)
        into = levels[at + 1] if at + 1 < len(levels) else level
        out = level if into != level else levels[at - 1]
        for of in padded:
            of[of == out] = into
        levels.remove(out)
    return padded


def _enough(padded: Sequence[np.ndarray], shares: np.ndarray, batch_size: int, level: int) -> bool:
    """Whether every folder has enough cases of a depth for its share of a batch."""
    counts = np.array([(of == level).sum() for of in padded])
    weight = shares * counts / [len(of) for of in padded]
    ends = np.cumsum(weight / weight.sum()) * batch_size
    ends[-1] = batch_size
    return all(count >= _most_rows(ends, k) for k, count in enumerate(counts) if count) and bool(
        counts.sum() >= batch_size
    )


def _cycle(shares: np.ndarray) -> np.ndarray:
    """How many batches of each depth a cycle has."""
    length = 1 if len(shares) == 1 else min(LONGEST_CYCLE, math.ceil(20 / shares.min()))
    return np.maximum(np.rint(shares / shares.sum() * length), 1).astype(int)


@functools.lru_cache(maxsize=4)
def _order(seed: int, number: int, counts: tuple[int, ...]) -> np.ndarray:
    """Which depth each batch of a cycle has."""
    buckets = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng([seed, 1, number]).permutation(buckets)


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, folder: int, depth: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch, folder, depth]).permutation(count)
