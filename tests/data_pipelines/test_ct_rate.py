"""CT-RATE's layout in both versions, small."""

import csv

import numpy as np
import pytest
from chest_ct import SPACING_MM, chest, save

from data_pipelines.ct_rate import stated_spacing
from data_pipelines.labels import LABELS
from data_pipelines.source import HELD_OUT, TRAINING, open_source
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid

GRID = Grid.centred((20, 48, 48), (16.0, 8.0, 8.0))
METADATA = {
    "Manufacturer": "Philips", "PatientSex": "F", "PatientAge": "036Y",
    "XYSpacing": "[6.0, 6.0]", "ZSpacing": "8.0", "RescaleSlope": "1", "RescaleIntercept": "-1024",
}  # fmt: skip


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def tree(root, version="v2", volumes=(), **changes):
    """Two training patients, one with two reconstructions, and one for validation."""
    names = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1", *volumes]
    base = root / "dataset"
    for i, name in enumerate(names):
        split, patient, scan, _ = name.split("_")
        hu = chest(seed=i)
        hu[:, :3] = -8192
        intercept = float(METADATA["RescaleIntercept"])
        stored = hu if version == "v2" else np.maximum(hu, intercept) - intercept
        folder = f"{split}_fixed" if version == "v2" else split
        inner = f"{folder}/{split}_{patient}/{split}_{patient}_{scan}"
        save(base / inner / f"{name}.nii.gz", stored)
    for prefix in ("train", "validation"):
        mine = [n for n in names if n.startswith(prefix[:5])]
        table(
            base / "radiology_text_reports" / f"{prefix}_reports.csv",
            ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN",
             "Impressions_EN"],
            [{"VolumeName": f"{n}.nii.gz", "Findings_EN": f'"Lungs" of {n}.\nClear.',
              "Impressions_EN": "Not given." if n == "train_2_a_1" else "Normal."} for n in mine],
        )  # fmt: skip
        table(
            base / "metadata" / f"{prefix}_metadata.csv",
            ["VolumeName", *METADATA],
            [{"VolumeName": f"{n}.nii.gz", **METADATA, **changes.get(n, {})} for n in mine],
        )
        table(
            base / "multi_abnormality_labels" / f"{prefix}_predicted_labels.csv",
            ["VolumeName", *LABELS],
            [{"VolumeName": f"{n}.nii.gz", **dict.fromkeys(LABELS, 0), "Emphysema": 1}
             for n in mine],
        )  # fmt: skip
    return root


def source(root, **options):
    return open_source(DataConfig(source="ct_rate", root=str(root), **options))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_give_the_same_hu(tmp_path, version):
    opened = source(tree(tmp_path, version))
    assert [opened.case(i).name.split("/")[-1] for i in range(opened.cases)] == [
        f"{name}.nii.gz" for name in ("train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1")
    ]
    expected = chest(seed=0)
    expected[:, :3] = -1024
    read = opened.read(0)
    np.testing.assert_allclose(read.volume_hu, np.rint(expected), atol=1)
    np.testing.assert_allclose(read.spacing_mm, SPACING_MM)
    assert opened.listing.facts["versions"] == {"v1": 0, "v2": 0} | {version: 4}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nothing_is_scaled_twice(tmp_path, version):
    """Volumes in HU in a folder of version 1, and unscaled ones in a folder of version 2."""
    root = tree(tmp_path, version)
    (file,) = root.rglob("train_1_a_1.nii.gz")
    wrong = chest(seed=0) + (1024 if version == "v2" else 0)
    save(file, wrong)
    opened = source(root)
    if version == "v1":
        assert "HU already" in " ".join(opened.read(0).notes)
        np.testing.assert_allclose(opened.read(0).volume_hu, np.rint(wrong), atol=1)
    else:
        with pytest.raises(ValueError, match="intercept left out"):
            opened.read(0)


def test_what_is_there_in_one_version_only_is_not_lost(tmp_path):
    root = tree(tmp_path, "v1")
    (old,) = root.rglob("train_1_a_1.nii.gz")
    new = root / "dataset" / "train_fixed" / "train_1" / "train_1_a" / old.name
    save(new, chest(seed=0))
    opened = source(root)
    assert opened.listing.facts["versions"] == {"v1": 3, "v2": 1} and opened.cases == 4
    for i in range(2):
        np.testing.assert_allclose(
            opened.read(i).volume_hu[:, 5:], np.rint(chest(seed=i))[:, 5:], atol=1
        )


def test_tables_are_joined(tmp_path):
    opened = source(tree(tmp_path), text="both")
    assert opened.report(0, np.random.default_rng(0)) == (
        '36 years old female: "Lungs" of train_1_a_1. Clear. Normal.'
    )
    assert opened.report(2, np.random.default_rng(0)).endswith("Clear.")
    assert opened.labels(0).tolist() == [int(name == "Emphysema") for name in LABELS]
    assert [opened.split(i) for i in range(4)] == [TRAINING] * 3 + [HELD_OUT]
    assert opened.patient(0) == opened.patient(1) == "train_1"
    hashes = opened.listing.facts["multi_abnormality_labels"]
    assert len(hashes["train_predicted_labels.csv"]) == 64
    impressions = source(tmp_path)
    assert impressions.case(2).report == "" and "no report" in impressions.case(2).notes[0]


def test_one_per_scan_and_exclusions(tmp_path):
    root = tree(tmp_path)
    no_chest = tmp_path / "no_chest.csv"
    no_chest.write_text("VolumeName\ntrain_2_a_1.nii.gz\n")
    opened = source(root, one_per_scan=True, exclude=(str(no_chest),))
    names = [opened.case(i).name.split("/")[-1] for i in range(opened.cases)]
    assert names == ["train_1_a_1.nii.gz", "valid_1_a_1.nii.gz"]
    reasons = sorted(reason for _, reason in opened.listing.rejected)
    assert reasons == ["another reconstruction of a scan", "excluded"]


def test_spacings(tmp_path):
    root = tree(
        tmp_path,
        train_1_a_1={"ZSpacing": ""},
        train_1_a_2={"XYSpacing": "[3.0, 3.0]"},
        train_2_a_1={"ZSpacing": "8.003"},
    )
    opened = source(root)
    assert opened.read(0).spacing_mm == pytest.approx(SPACING_MM)  # the file's own
    assert opened.read(1).spacing_mm == pytest.approx((8, 3, 3))  # the table's, and told
    assert "as stated" in " ".join(opened.read(1).notes)
    assert opened.read(2).spacing_mm == pytest.approx(SPACING_MM)
    assert "as stated" not in " ".join(opened.read(2).notes)
    assert stated_spacing({"XYSpacing": "nonsense", "ZSpacing": "1"}) is None


def test_head_first_slices_without_an_orientation(tmp_path):
    import nibabel as nib

    root = tree(tmp_path, "v1", train_1_a_1={"Manufacturer": "PNMS"})
    whole = source(root).read(0).volume_hu
    (file,) = root.rglob("train_1_a_1.nii.gz")
    image = nib.load(file)
    stored = np.asarray(image.dataobj)[::-1, ::-1, ::-1]  # from RAS to LPI, head first
    plain = nib.Nifti1Image(stored, None)
    plain.header.set_zooms((6.0, 6.0, 8.0))
    plain.header["qform_code"] = plain.header["sform_code"] = 0
    nib.save(plain, file)
    np.testing.assert_allclose(source(root).read(0).volume_hu, whole, atol=1e-3)


def test_what_does_not_belong_is_told(tmp_path):
    root = tree(tmp_path, "v1", train_2_a_1={"RescaleIntercept": ""})
    save(root / "dataset" / "train" / "train_9" / "other.nii.gz")
    table_path = root / "dataset" / "radiology_text_reports" / "train_reports.csv"
    table_path.write_bytes(table_path.read_bytes() + b"nonsense,a,b,c,d\n")
    reasons = {name.split("/")[-1]: reason for name, reason in source(root).listing.rejected}
    assert "no slope and intercept" in reasons["train_2_a_1.nii.gz"]
    assert "its name is not" in reasons["other.nii.gz"]
    assert any("names no volume" in reason for reason in reasons.values())


def test_a_tree_without_volumes(tmp_path):
    (tmp_path / "dataset").mkdir()
    with pytest.raises(ConfigError, match="no usable CT"):
        source(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.exclude"):
        source(tree(tmp_path), exclude=(str(tmp_path / "none.txt"),))
