from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mpn.engines.directory.entries import OsvosPreprocessing
from mpn.engines.directory.manifest import Preprocessing
from mpn.engines.spec import ROLES, Role
from mpn.errors import InputError
from mpn.export.parity_inputs import MAX_IMAGES, ParityPictures, rendered_picture
from tests.export.conftest import FRAME_SIZE_HW, ROI_SIZE, tiny_spec


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        rgb = np.full((40, 60, 3), (200, 100, 10 * index), np.uint8)
        cv2.imwrite(str(folder / f"{index:05d}.png"), rgb[..., ::-1])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("with_folder", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_inputs_fit_the_engine(pictures: Path, role: Role, with_folder: bool) -> None:
    spec = tiny_spec(role)
    cases = ParityPictures(pictures if with_folder else None).cases(spec, Preprocessing())
    for case in cases:
        spec.check_inputs(case.inputs)
        assert all(np.isfinite(array).all() for array in case.inputs.values())


def test_inputs_are_preprocessed_by_the_manifest(pictures: Path) -> None:
    images = ParityPictures(pictures)
    image = images.cases(tiny_spec("osvos"), Preprocessing())[0].inputs["image"]
    np.testing.assert_allclose(
        image[0, :, 0, 0], [0 - 104.00699, 100 - 116.66877, 200 - 122.67892], rtol=1e-5
    )
    rgb = Preprocessing(osvos=OsvosPreprocessing("rgb", (1.0, 2.0, 3.0)))
    image = images.cases(tiny_spec("osvos"), rgb)[0].inputs["image"]
    np.testing.assert_allclose(image[0, :, 0, 0], [199, 98, -3], rtol=1e-5)
    crop = images.cases(tiny_spec("propagation"), Preprocessing())[0].inputs["rgb_prob"]
    np.testing.assert_allclose(
        crop[0, :3, 0, 0],
        [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, -0.406 / 0.225],
        rtol=1e-5,
    )
    assert crop[0, 3, 0, 0] == 0
    assert crop[0, 3, ROI_SIZE // 2, ROI_SIZE // 2] == 1


def test_the_frames_of_a_flow_are_consecutive_and_differ(pictures: Path) -> None:
    spec = tiny_spec("flow")
    (case,) = ParityPictures().cases(spec, Preprocessing())
    for step, name in enumerate(("frame0", "frame1")):
        expected = rendered_picture(FRAME_SIZE_HW, 20, step=step).rgb
        np.testing.assert_array_equal(case.inputs[name][0].transpose(1, 2, 0), expected)
    (case,) = ParityPictures(pictures).cases(spec, Preprocessing())
    assert case.inputs["frame0"][0, 2].max() == 0
    assert case.inputs["frame1"][0, 2].min() == 10
    for path in sorted(pictures.glob("*.png"))[1:]:
        path.unlink()
    cv2.imwrite(str(pictures / "00000.png"), rendered_picture((40, 60), 1).rgb)
    (case,) = ParityPictures(pictures).cases(spec, Preprocessing())
    assert not np.array_equal(case.inputs["frame0"], case.inputs["frame1"])


def test_objects_differ_from_one_another() -> None:
    case = ParityPictures().cases(tiny_spec("propagation"), Preprocessing())[1]
    crops = case.inputs["rgb_prob"]
    assert len(crops) == 3
    assert not np.array_equal(crops[0], crops[1])


def test_the_digest_changes_with_the_pictures(pictures: Path) -> None:
    rendered = ParityPictures().digest
    before = ParityPictures(pictures).digest
    assert ParityPictures(pictures).digest == before != rendered
    cv2.imwrite(str(pictures / "00001.png"), np.zeros((40, 60, 3), np.uint8))
    assert ParityPictures(pictures).digest != before


def test_the_description_names_no_folder(pictures: Path) -> None:
    assert "3 pictures" in ParityPictures(pictures).description
    assert str(pictures) not in ParityPictures(pictures).description
    for index in range(20):
        cv2.imwrite(str(pictures / f"more{index}.png"), np.zeros((8, 8, 3), np.uint8))
    assert f"{MAX_IMAGES} pictures" in ParityPictures(pictures).description


def test_a_folder_without_usable_pictures_is_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        ParityPictures(pictures / "00000.png")
    with pytest.raises(InputError, match="is not a folder"):
        ParityPictures(pictures / "missing")
    (pictures / "00001.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"00001\.png is not an image"):
        ParityPictures(pictures)
    for path in pictures.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="holds no images"):
        ParityPictures(pictures)
