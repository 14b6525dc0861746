import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gct_jax.errors import InputError
from gct_jax.volumes.nifti import write_volume
from gct_jax.volumes.preview import (
    GAP_PX,
    LETTER_COLOUR,
    WIDTH_PX,
    orthogonal_planes,
    render_preview,
    save_preview,
    tile_images,
)

SPACING_MM = (8.0, 4.0, 4.0)
SHAPE = (12, 40, 30)  # 96 x 160 x 120 mm


def cells(picture):
    """The nine tiles of an untitled preview as [row][column] grey arrays."""
    grey = np.asarray(picture.convert("L"), np.float32)
    size = (WIDTH_PX - 4 * GAP_PX) // 3
    starts = [GAP_PX + i * (size + GAP_PX) for i in range(3)]
    return [[grey[y : y + size, x : x + size] for x in starts] for y in starts]


def extent(tile, level):
    """Rows and columns of the bounding box of what is brighter than `level`."""
    rows, columns = np.nonzero(tile > level)
    return (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)


def test_planes_show_the_patient_as_radiologists_do():
    """A voxel that is right, front and up of the centre; its place follows from the convention."""
    volume = np.zeros((9, 9, 9))
    volume[4, 1, 2] = 1  # central slice, front, right
    volume[7, 4, 2] = 2  # up, central, right
    volume[7, 1, 4] = 3  # up, front, central
    (axial, _), (coronal, _), (sagittal, _) = orthogonal_planes(volume, (1, 1, 1))
    assert np.argwhere(axial == 1).tolist() == [[1, 2]]  # front is up, right is left
    assert np.argwhere(coronal == 2).tolist() == [[1, 2]]  # head is up, right is left
    assert np.argwhere(sagittal == 3).tolist() == [[1, 1]]  # head is up, front is left


def test_physical_aspect():
    picture = render_preview(np.full(SHAPE, 2000.0), SPACING_MM)
    assert picture.size == (WIDTH_PX, WIDTH_PX)
    size = (WIDTH_PX - 4 * GAP_PX) // 3
    for row in cells(picture):
        for tile, (height_mm, width_mm) in zip(
            row, [(160, 120), (96, 120), (96, 160)], strict=True
        ):
            # 254: annotations have darker rims and paler letters inside the white box
            (top, bottom), (left, right) = extent(tile, 254)
            assert bottom - top == pytest.approx(size * height_mm / 160, abs=1)
            assert right - left == pytest.approx(size * width_mm / 160, abs=1)


@pytest.mark.parametrize(
    ("value_hu", "greys"), [(-1000, (0, 0, 0)), (-425, (73, 128, 0)), (50, (134, 233, 128))]
)
def test_rows_are_windows(value_hu, greys):
    for row, grey in zip(
        cells(render_preview(np.full(SHAPE, value_hu), SPACING_MM)), greys, strict=True
    ):
        for tile in row:
            middle = tile[150:180, 150:180]
            np.testing.assert_array_equal(middle, grey)


def test_letters_and_title():
    volume = np.full(SHAPE, -1000.0)
    plain = render_preview(volume, SPACING_MM)
    assert (np.asarray(plain) == LETTER_COLOUR).all(axis=-1).sum() > 9 * 4 * 10
    titled = render_preview(volume, SPACING_MM, "Cardiomegaly. " * 50)
    assert titled.width == WIDTH_PX
    band = np.asarray(titled)[: titled.height - plain.height]
    assert band.max() > 200  # the title is there
    assert band[:, -2 * GAP_PX :].max() == 0  # and was shortened to fit
    np.testing.assert_array_equal(np.asarray(titled)[band.shape[0] :], np.asarray(plain))


def test_tiles_are_centred_on_black():
    images = [Image.new("RGB", (4, 2), (i + 1, 0, 0)) for i in range(2)]
    images.append(Image.new("RGB", (2, 2), (9, 0, 0)))
    sheet = np.asarray(tile_images(images, columns=2, gap=1))[..., 0]
    expected = np.zeros((7, 11))
    expected[1:3, 1:5], expected[1:3, 6:10], expected[4:6, 2:4] = 1, 2, 9
    np.testing.assert_array_equal(sheet, expected)


def test_saved_as_png(tmp_path):
    path = tmp_path / "new" / "preview.png"
    save_preview(path, np.zeros(SHAPE), SPACING_MM, "title")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == WIDTH_PX
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_preview(tmp_path / "file" / "preview.png", np.zeros(SHAPE), SPACING_MM)


def glyph(letter):
    """The letter as it is drawn, cut to its ink."""
    canvas = Image.new("RGB", (40, 40))
    font = ImageFont.load_default(17)
    ImageDraw.Draw(canvas).text((8, 20), letter, LETTER_COLOUR, font, anchor="lm")
    return cut_to_ink(np.asarray(canvas))


def cut_to_ink(picture):
    ink = (picture == LETTER_COLOUR).all(axis=-1)
    rows, columns = np.nonzero(ink)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def letters_of(tile):
    """What stands at the left, right, top and bottom edge of a tile, read by comparing shapes."""
    size = len(tile)
    middle = slice(size // 2 - 30, size // 2 + 30)
    places = [tile[middle, :60], tile[middle, -60:], tile[:60, middle], tile[-60:, middle]]
    return "".join(
        letter
        for place in places
        for letter in "RLAPSI"
        if np.array_equal(cut_to_ink(place), glyph(letter))
    )


def test_left_and_right_from_the_array_to_the_drawn_letter(tmp_path):
    """Bright is what lies to the patient's left in the written file's own world; where the picture
    is bright, its letter says L. The same for back (P) and head (S)."""
    shape, half = (20, 40, 40), np.indices((20, 40, 40))
    # planes in which the axis can be seen: row of tiles 0, columns axial, coronal, sagittal
    for axis, towards, bright in ((2, "L", (0, 1)), (1, "P", (0, 2)), (0, "S", (1, 2))):
        volume = np.where(half[axis] >= shape[axis] // 2, 900.0, -900.0)
        write_volume(tmp_path / "volume.nii", volume, (8.0, 4.0, 4.0))
        image = nib.load(tmp_path / "volume.nii")
        places = nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() > 0))
        world = {"L": -places[:, 0], "P": -places[:, 1], "S": places[:, 2]}[towards]
        assert (world > 0).all()
        picture = np.asarray(render_preview(volume, (8.0, 4.0, 4.0)))
        size = (WIDTH_PX - 4 * GAP_PX) // 3
        for column in bright:
            x = GAP_PX + column * (size + GAP_PX)
            tile = picture[GAP_PX : GAP_PX + size, x : x + size]
            letters = letters_of(tile)
            assert len(letters) == 4
            grey = tile.astype(float).mean(axis=-1)
            quarter = size // 4
            levels = {
                letters[0]: grey[quarter:-quarter, quarter : size // 2].mean(),
                letters[1]: grey[quarter:-quarter, size // 2 : -quarter].mean(),
                letters[2]: grey[quarter : size // 2, quarter:-quarter].mean(),
                letters[3]: grey[size // 2 : -quarter, quarter:-quarter].mean(),
            }
            assert max(levels, key=levels.get) == towards, (column, levels)
            assert set(letters) in (
                {"R", "L", "A", "P"},
                {"R", "L", "S", "I"},
                {"A", "P", "S", "I"},
            )
