"""The benchmark's arithmetic and counts, its guard over processes, and that both sides compute the
same."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from peer_packages import require
from PIL import Image
from tiny_model import quick_compilation

from gct_jax.errors import InputError
from gct_jax.flops import count_flops
from launch.benchmark import __main__ as command
from launch.benchmark.cases import CEILING, SIZES, choose
from launch.benchmark.chart import KILLED, OURS, PEER, draw, save_chart
from launch.benchmark.measure import forget_peak, measure, peak_bytes
from launch.benchmark.ours import abstract_call, load_call
from launch.benchmark.prepare import input_file, input_shapes, prepare, weight_file
from launch.benchmark.process import Limits, run_guarded
from launch.benchmark.report import compare, row_of, table
from launch.benchmark.worker import Keeper

TINY = {case.name: case for case in SIZES["tiny"].cases}
PEER_PACKAGES = ("phenaki_pytorch", "vector_quantize_pytorch", "imagen_pytorch")
MODEL = SIZES["tiny"].model


def answer(seconds, megabytes, **more):
    return {"status": "ok", "seconds": seconds, "peak_bytes": megabytes * 1e6, "detail": "", **more}


def results():
    """Two cases with numbers that are easy to divide."""
    ceiling = {"matmul": 100e9, "convolution": 50e9, "source": "measured"}
    flops = {"matmul": 20e9, "convolution": 5e9}
    ours = [answer([2.0, 1.0], 100), answer([3.0, 0.5], 200)]
    peer = [answer([4.0], 900, flops=80e9), answer([5.0], 1000, flops=80e9)]
    killed = {"status": "out of memory", "peak_bytes": 7e9, "detail": ""}
    cases = [TINY["maskgit_forward_8"], TINY["unet_forward"]]
    difference = {"max_abs": 1e-6, "largest": 2.0}
    rows = [
        row_of(cases[0], ours, peer, flops, ceiling, difference),
        row_of(cases[1], ours, [killed], flops, ceiling, None),
    ]
    run = {"device": "abacus", "cores": 2, "dtype": "float32", "repeats": 2, "calls": 2}
    return {"run": run, "ceiling": ceiling, "cases": rows}


def test_row_from_rounds():
    row, alone = results()["cases"]
    assert row["ours"]["best_seconds"] == 0.5
    assert row["ours"]["median_seconds"] == 1.5
    assert row["ours"]["peak_mb"] == 200
    assert row["floor_seconds"] == pytest.approx(20 / 100 + 5 / 50)
    assert row["ours"]["gflop_per_second"] == pytest.approx(25 / 0.5)
    assert row["ours"]["share_of_ceiling"] == pytest.approx(0.3 / 0.5)
    assert row["peer"]["gflop_per_second"] == pytest.approx(80 / 4)
    assert (row["times_faster"], row["times_smaller"]) == (8, 5)
    assert alone["peer"] == {
        "package": "imagen-pytorch",
        "status": "out of memory",
        "peak_mb": 7000,
        "detail": "",
    }
    assert "times_faster" not in alone


def test_table_names_a_killed_peer():
    _, head, _, first, second = (line for line in table(results()).splitlines() if line)
    assert head.count("|") == first.count("|") == second.count("|")
    assert "| 0.5 | 4 | 8.0 | 200 | 1,000 | 5.0 | 25.0 | 50 | 20 | 0.3 | 60% |" in first
    assert "| 0.5 | out of memory | - | 200 | > 7,000 | - |" in second


def test_chart_has_bars_as_long_as_the_numbers(tmp_path):
    save_chart(tmp_path / "bars.png", results())
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.format == "PNG"
    seconds, memory = draw(results()).axes
    bars = {bar.get_facecolor(): [] for bar in seconds.patches}
    for bar in seconds.patches:
        bars[bar.get_facecolor()].append(bar.get_width())
    lengths = [[w for w in bars[to_rgba(colour)] if w not in (0, 0.8)] for colour in (OURS, PEER)]
    assert lengths == [[0.5, 0.5], [4.0]]  # the second peer was killed and has no seconds
    assert [text.get_text() for text in seconds.texts].count("out of memory") == 1
    killed = [bar for bar in memory.patches if bar.get_facecolor() == to_rgba(KILLED)]
    assert 7000 in [bar.get_width() for bar in killed]
    assert seconds.get_xscale() == memory.get_xscale() == "log"


def test_flops_of_loops_branches_and_gradients():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    product = 2 * 3 * 4 * 5
    assert count_flops(jnp.matmul, a, b).total == product
    scanned = count_flops(lambda a, b: jax.lax.map(lambda _: a @ b, jnp.arange(7)), a, b)
    assert scanned.matmul == 7 * product
    branch = count_flops(lambda a, b: jax.lax.cond(True, lambda: a @ b, lambda: a @ b + 1), a, b)
    assert branch.matmul == product
    gradient = jax.grad(lambda a, b: jnp.sum(jax.jit(jnp.matmul)(a, b) ** 2), argnums=(0, 1))
    assert count_flops(gradient, a, b).matmul == 3 * product


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_flops_of_convolutions(stride, groups):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 8))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    forward = 2 * 2 * (8 // stride) ** 2 * 8 * 9 * (4 // groups)
    assert count_flops(convolve, x, kernel).convolution == forward
    gradient = jax.grad(lambda *arguments: jnp.sum(convolve(*arguments) ** 2), argnums=(0, 1))
    # Sums over zeros at the borders differ a little between an operation and its transposes.
    assert count_flops(gradient, x, kernel).total == pytest.approx(3 * forward, rel=0.3)


def folded_gflop(tokens=41, heads=8, dim_head=64):
    """What folding saves in the published U-Net's cross attention: a position costs each head
    channels x tokens products where it cost dim_head x (channels + tokens), for logits and again
    for values. There are two layers at each level and two in the middle."""
    levels = ((2, 256**2, 64), (2, 128**2, 128), (4, 64**2, 256))
    saved = sum(
        layers * positions * (dim_head * (channels + tokens) - channels * tokens)
        for layers, positions, channels in levels
    )
    return 2 * 2 * heads * saved / 1e9


def winograd_gflop():
    """What Winograd's convolutions save in the published U-Net: three quarters of every 3x3 layer
    with 128 channels and more, less the transforms of the windows, from 9 to 36 numbers each."""
    layers = (  # how many of which image, channels and features
        (9, 128, 128, 128),
        (3, 128, 256, 128),
        (13, 64, 256, 256),
        (3, 64, 512, 256),
    )
    saved = sum(n * c * f * (9 * side**2 * 3 / 4 - 9 * 36) for n, side, c, f in layers)
    return 2 * saved / 1e9


@pytest.mark.parametrize(
    ("name", "gflop"),
    [
        # PyTorch's counts of the published networks, less a position bias computed for each pair
        # of tokens (1,664 squared, or 64 squared) where ours computes one for each offset. Ours
        # fills the U-Net's parallel kernels up to 15 x 15 with zeros (15.1 in place of 4.9), folds
        # its cross attention and convolves with fewer multiplications.
        ("maskgit_forward_1664", 150.1 - 401 * (1664 / 6464) ** 2),
        ("ctvit_encode", 336.7 - 2.2),
        ("ctvit_decode", 282.4 - 2.2),
        ("unet_forward", 387.5 - 4.9 + 15.1 - folded_gflop() - winograd_gflop()),
    ],
)
def test_published_networks_have_the_known_operations(name, gflop):
    model, (case,) = choose("published", [name])
    shapes = input_shapes(model, case)
    if case.part == "maskgit":  # counted with a text of 64 tokens
        shapes |= {"context": (1, 64, 768), "context_mask": (1, 64)}
    dtypes = {"ids": np.int32, "context_mask": bool, "text_mask": bool}
    batch = {
        key: jax.ShapeDtypeStruct(shape, dtypes.get(key, np.float32))
        for key, shape in shapes.items()
    }
    assert count_flops(*abstract_call(model, case, batch)).total / 1e9 == pytest.approx(
        gflop, rel=0.01
    )


def python(code, megabytes=2000, seconds=60):
    return run_guarded(
        [sys.executable, "-c", code], dict(os.environ), Limits(megabytes * 10**6, seconds)
    )


def test_guard_kills_what_takes_too_much():
    outcome = python("b = b'x' * 300_000_000; import time; time.sleep(60)", megabytes=150)
    assert outcome.status == "out of memory"
    assert outcome.peak_bytes > 150e6
    assert outcome.seconds < 50
    assert python("import time; time.sleep(60)", seconds=0.3).status == "out of time"


def test_guard_tells_how_a_process_ended():
    assert python("pass").status == "ok"
    assert python("import os; os.kill(os.getpid(), 9)").status == "out of memory"
    assert python("import sys; sys.exit(77)").status == "out of memory"
    outcome = python("print('x' * 10**6); raise ValueError('a reason')")
    assert (outcome.status, outcome.detail) == ("failed", "ValueError: a reason")


def test_peak_memory_is_that_of_this_process():
    before = peak_bytes()
    large = np.ones(before // 8)  # as much again
    assert before < large.nbytes + 10**6
    high = peak_bytes()
    assert high > 1.3 * before
    del large
    forget_peak()
    if sys.platform == "linux":
        assert peak_bytes() < 0.9 * high


def test_first_two_outputs_are_kept_and_calls_counted():
    kept, made = [], iter(range(99))
    timed = measure(lambda: next(made), 4, kept.append)
    assert (len(timed.seconds), kept, next(made)) == (4, [0, 1], 5)


def test_unknown_case_and_missing_peer_are_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="no case 'unet'; the cases are maskgit_forward_8"):
        choose("tiny", ["unet"])
    monkeypatch.setitem(command.PEER_MODULES, "phenaki-pytorch", ("no_such_peer",))
    arguments = ["--sizes", "tiny", "--only", "ctvit_encode", "--out", str(tmp_path / "x.json")]
    assert command.main(arguments) == 2
    assert "no_such_peer not installed; pip install" in capsys.readouterr().err


def test_command_writes_table_picture_and_numbers(tmp_path, capsys):
    out = tmp_path / "tiny.json"
    chosen = ["--sizes", "tiny", "--only", "maskgit_forward_8", "--no-peers"]
    assert command.main([*chosen, "--repeats", "1", "--calls", "2", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    (row,) = written["cases"]
    assert len(row["ours"]["seconds"]) == 2
    # An interpreter with JAX is in both.
    assert 100 < row["ours"]["running_peak_mb"] <= row["ours"]["peak_mb"]
    flops = sum(row["gflop"].values())
    assert row["ours"]["gflop_per_second"] == pytest.approx(flops / row["ours"]["best_seconds"])
    assert written["ceiling"]["source"] == "measured"
    assert table(written) in capsys.readouterr().out
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 1000
    assert CEILING not in [row["name"] for row in written["cases"]]


def test_a_peers_process_does_not_carry_jax():
    """Its memory is measured, so what it imports before its own packages counts."""
    code = "import sys, launch.benchmark.worker; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    prepare(folder, MODEL, [case for case in TINY.values() if case.peer])
    return folder


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("torch")
    from launch.benchmark import peers

    return peers


@pytest.mark.parametrize("name", [name for name, case in TINY.items() if case.peer])
class TestPeers:
    """Outputs of both sides as the command compares them; with the marks of the group."""

    pytestmark = require(*PEER_PACKAGES, "einops_exts", "beartype")

    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-5), ("bfloat16", 0.1)])
    def test_outputs_agree(self, name, dtype, tolerance, prepared, peers, tmp_path):
        case = TINY[name]
        files = weight_file(prepared, case.part), input_file(prepared, case)
        ours, theirs = tmp_path / "ours.npy", tmp_path / "peers.npy"
        with quick_compilation():
            measure(load_call(case, MODEL, *files, dtype), 1, Keeper(case, ours))
        call, flops = peers.load_call(case, MODEL, *files, 1, dtype)
        measure(call, 1, Keeper(case, theirs))
        difference = compare(case, ours, theirs)
        if case.task == "encode":
            assert difference["ids"] == 12
            assert difference["ids_differ"] <= (0 if dtype == "float32" else 4)
        else:
            assert difference["max_abs"] < tolerance * max(1, difference["largest"])
        counted = json.loads((prepared / "flops.json").read_text())[name]
        # The peer computes the position bias of each pair anew; these networks are all bias.
        assert 0 < sum(counted.values()) <= 1.2 * flops
