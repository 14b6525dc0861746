"""The command on a few cases."""

import numpy as np
import pytest

from data_pipelines.phantom.detectors import Weights
from data_pipelines.phantom.findings import FINDINGS
from launch.demo import fit_detectors


@pytest.mark.long
@pytest.mark.slow
def test_command_writes_weights_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_detectors, "SHARD", 4)
    weights = tmp_path / "weights.npz"
    command = ["--cases", "4", "--held-out", "2", "--workdir", str(tmp_path), "--processes", "1"]
    command += ["--out", str(weights)]
    assert fit_detectors.main(command) == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]] == list(FINDINGS)
    with np.load(weights) as arrays:
        assert arrays.files == list(Weights._fields)
        first = dict(arrays)

    rendered = fit_detectors._volumes

    def rendered_again(number):
        assert number == 0, f"case {number} has been measured before"  # 0 is compared
        return rendered(number)

    monkeypatch.setattr(fit_detectors, "_volumes", rendered_again)
    assert fit_detectors.main(command) == 0
    with np.load(weights) as arrays:
        for name, array in first.items():
            np.testing.assert_array_equal(arrays[name], array)

    shards = sorted(tmp_path.glob("measured_*.npz"))
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    capsys.readouterr()
    assert fit_detectors.main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(shards[1]) in error and "delete it" in error
    with np.load(shards[0]) as arrays:
        other = {name: arrays[name][:, :-1] for name in arrays.files}
    np.savez(shards[0], allow_pickle=False, **other)
    assert fit_detectors.main(command) == 2
    assert "another version" in capsys.readouterr().err.splitlines()[-1]


def test_training_and_evaluation_use_other_cases():
    from launch.demo.evaluate import FIRST_SEED

    assert 1_000_000_000 <= fit_detectors.FIRST_SEED < FIRST_SEED - 1_000_000


@pytest.mark.parametrize("option", [["--cases", "1"], ["--held-out", "0"], ["--processes", "0"]])
def test_unusable_numbers_are_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        fit_detectors.main(option)
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err
