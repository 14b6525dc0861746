"""A folder of CTs with its table: what is listed, what is left out, and why."""

import numpy as np
import pytest
from broken_cts import NOTED, REJECTED, make
from chest_ct import chest, save

from data_pipelines.cases import hold_out
from data_pipelines.folder import FolderSource
from data_pipelines.labels import LABELS
from data_pipelines.prepared_case import Prepared, prepare_case
from data_pipelines.source import HELD_OUT, TRAINING, open_source
from gct_jax.errors import ConfigError, InputError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

GRID = Grid.centred((9, 16, 16), (32.0, 24.0, 24.0))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    pytest.importorskip("zstandard")
    root = tmp_path_factory.mktemp("broken") / "cts"
    root.mkdir()
    return root, make(root)


@pytest.fixture(scope="module")
def outcome(broken):
    """Reasons by name, and what was prepared by name."""
    root, table = broken
    source = FolderSource(DataConfig(root=str(root), reports=str(table), held_out=2))
    reasons = dict(source.listing.rejected)
    prepared = {}
    for case in range(source.cases):
        result = prepare_case(source, "folder", case, GRID)
        name = source.case(case).name
        if isinstance(result, Prepared):
            prepared[name] = (source.case(case), result)
        else:
            reasons[result.name] = result.reason
    return reasons, prepared


@pytest.mark.parametrize("name", REJECTED)
def test_rejected_with_its_own_reason(outcome, name):
    reasons, prepared = outcome
    assert name not in prepared
    assert REJECTED[name] in reasons[name], reasons[name]
    assert "\n" not in reasons[name] and "--" not in reasons[name].replace("--root", "")


@pytest.mark.parametrize("name", NOTED)
def test_read_and_noted(outcome, name):
    _, prepared = outcome
    notes = " ".join(prepared[name][1].facts["notes"])
    assert (NOTED[name] or "") in notes


def test_whatever_the_orientation_the_same_is_seen(outcome):
    _, prepared = outcome
    import zstandard

    def volume(name):
        result = prepared[name][1]
        return np.frombuffer(zstandard.decompress(result.packed), "<i2").reshape(result.shape)

    middle = volume("good.nii.gz")[4]
    assert middle[:, :8].mean() < middle[:, 8:].mean() - 20  # the right lung is the larger one
    turned = volume("flipped.nii.gz")  # its affine says that left is right and front is back
    mirrored = np.abs(turned[:, :, ::-1].astype(int) - volume("good.nii.gz"))
    assert np.mean(mirrored > 300) < 0.05


def test_a_link_loop_and_other_files_are_told(outcome):
    reasons, _ = outcome
    assert "back to a folder above" in reasons["loop"]
    assert reasons["picture.png"] == "neither NIfTI nor DICOM"
    assert "notes.txt" not in reasons


def test_reports_ages_and_sexes(outcome):
    _, prepared = outcome
    case = prepared["unicode.nii.gz"][0]
    assert case.report == "7 months old: Erguß links, <script>alert(1)</script> 肺."
    assert prepared["good.nii.gz"][0].report == "40 years old female: Normal chest."


def test_a_patient_is_never_on_both_sides():
    def of(patients):
        from data_pipelines.cases import Case

        return [Case(f"{i}", (), patient, "", "") for i, patient in enumerate(patients)]

    cases = hold_out(of("aabbbcddde"), 3)
    sides = {case.patient: case.split for case in cases}
    assert all(sides[case.patient] == case.split for case in cases)
    assert set(sides.values()) == {TRAINING, HELD_OUT}
    more = {case.patient: case.split for case in hold_out(of("aabbbcdddef"), 3)}
    assert sum(sides[patient] != more[patient] for patient in sides) <= 1
    assert {case.split for case in hold_out(of("aaa"), 3)} == {TRAINING}


def test_columns_are_believed(tmp_path):
    root = tmp_path / "cts"
    for name in "abc":
        save(root / f"{name}.nii.gz", chest(seed=ord(name)), spacing_mm=(1.0, 1.0, 1.0))
    table = tmp_path / "t.csv"
    table.write_text(
        f"path;report;patient;split;spacing_mm;{LABELS[2]};{LABELS[12]}\n"
        "a.nii.gz;Big heart.;x;train;8x6x6;1;0\nb.nii.gz;;y;validation;8x6x6;0;\n"
        "c.nii.gz;No.;z;somewhere;;0;0\n",
        encoding="utf-8-sig",
    )
    source = open_source(
        DataConfig(source="folder", root=str(root), reports=str(table), held_out=1)
    )
    assert [source.split(i) for i in range(2)] == [TRAINING, HELD_OUT]
    assert source.read(0).spacing_mm == pytest.approx((8, 6, 6))
    assert source.labels(0)[[2, 12]].tolist() == [1, 0] and source.labels(1)[12] == -1
    assert source.report(1, np.random.default_rng(0)) == ""
    assert "neither 'train' nor 'validation'" in dict(source.listing.rejected)["c.nii.gz"]


def test_columns_by_any_spelling_and_unknown_ones(tmp_path, capsys):
    save(tmp_path / "cts" / "a.nii.gz")
    (tmp_path / "t.csv").write_text(
        "Path,REPORT, cardiomegaly ,Pleural Effusion,Alter\na.nii.gz,Text.,1,0,50\n"
    )
    source = FolderSource(
        DataConfig(root=str(tmp_path / "cts"), reports=str(tmp_path / "t.csv"), held_out=0)
    )
    assert source.labels(0)[[2, 12]].tolist() == [1, 0]
    assert "columns that say nothing here: Alter" in capsys.readouterr().err
    assert source.listing.facts["columns left out"] == ["Alter"]


@pytest.mark.parametrize(("count", "expected"), [(4, 1), (20, 4), (200, 16)])
def test_a_fifth_is_held_out_at_most(tmp_path, count, expected):
    for i in range(count):
        (tmp_path / f"{i}.nii.gz").touch()
    source = FolderSource(DataConfig(root=str(tmp_path), held_out=0))
    assert [source.split(i) for i in range(count)].count(HELD_OUT) == expected


def test_links_to_nothing_and_patients_in_both_splits(tmp_path):
    for name in "ab":
        save(tmp_path / "cts" / f"{name}.nii.gz")
    (tmp_path / "cts" / "gone.nii.gz").symlink_to(tmp_path / "nowhere")
    table = tmp_path / "t.csv"
    data = DataConfig(root=str(tmp_path / "cts"), reports=str(table))
    table.write_text("path,report,patient,split\na.nii.gz,x,p,train\nb.nii.gz,x,q,test\n")
    rejected = dict(FolderSource(data).listing.rejected)
    assert rejected["gone.nii.gz"] == "a link to nothing"
    assert "neither 'train' nor 'validation'" in rejected["b.nii.gz"]
    table.write_text("path,report,patient,split\na.nii.gz,x,p,train\nb.nii.gz,x,p,valid\n")
    with pytest.raises(ConfigError, match=r"a\.nii\.gz and b\.nii\.gz are of one patient"):
        FolderSource(data)


def test_without_a_table_every_ct_counts(tmp_path):
    for name in ("p1/a.nii.gz", "p1/b.nii.gz", "p2/a.nii.gz"):
        save(tmp_path / name)
    source = FolderSource(DataConfig(root=str(tmp_path), held_out=1))
    assert [source.patient(i) for i in range(3)] == ["p1", "p1", "p2"]
    assert len({source.split(0), source.split(1)}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,report\nx,y\n", "no column path"),
        ("path,path,report\n", "comes twice"),
        ('path,report\n"x,y\n', "is no CSV"),
        ("path,report\nx\0,y\n", "zero bytes"),
    ],
)
def test_a_table_that_is_none(tmp_path, content, message):
    save(tmp_path / "cts" / "x.nii.gz")
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        FolderSource(DataConfig(root=str(tmp_path / "cts"), reports=str(tmp_path / "t.csv")))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no usable CT"):
        FolderSource(DataConfig(root=str(tmp_path)))
    with pytest.raises(ConfigError, match="no folder"):
        FolderSource(DataConfig(root=str(tmp_path / "none")))


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    import os

    save(tmp_path / "a" / "x.nii.gz")
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    source = FolderSource(DataConfig(root=str(tmp_path)))
    assert dict(source.listing.rejected) == {"b": "cannot be read (Permission denied)"}


def test_dicom_series_are_cases(tmp_path):
    pytest.importorskip("pydicom")
    from volumes.test_dicom import write

    write(tmp_path / "s1")
    write(tmp_path / "s2")
    write(tmp_path / "s2" / "more", uid="1.2.9", image_type=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    source = FolderSource(DataConfig(root=str(tmp_path)))
    assert [source.case(i).name for i in range(2)] == ["s1#4", "s2#4"]
    assert source.report(0, np.random.default_rng(0)) == "" and source.patient(0) == "P"
    assert source.case(0).age.words == "65 years old" and source.case(0).sex == "female"
    assert dict(source.listing.rejected) == {"s2/more#4": "a localizer"}
    assert source.volume_hu(0, GRID).dtype == np.int16
