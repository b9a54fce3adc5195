"""The converter of LIDC-IDRI, on a miniature of what its owners distribute: DICOM series, and readings in XML."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion.lidc import filled
from tests.dataset_conversion.conftest import groups_of, labels_of, refused
from unisegdiff_pipeline.io.dicom import keeping_locale

SIZE = (10, 12)  # (Y, X)
SQUARE = [(2, 2), (4, 2), (6, 2), (6, 4), (6, 6), (4, 6), (2, 6), (2, 4)]  # encloses x, y = 3 to 5
POINT = [(4, 4)]
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'


def uid(series: int, row: int | None = None) -> str:
    return f"1.3.6.1.4.1.14519.{series}" + ("" if row is None else f".{row}")


def ct(folder: Path, series: int, places: Sequence[float] = (-30.0, -27.5, -25.0, -22.5), modality: str = "CT") -> None:
    """Slices at these places, whose files are numbered from the head down, as in LIDC-IDRI."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    for row, z_mm in enumerate(places):
        image = sitk.GetImageFromArray(np.full((1, *SIZE), -1000 + row, np.int16))
        image.SetSpacing((0.7, 0.7, 2.5))
        tags = {
            "0008|0060": modality,
            "0008|0018": uid(series, row),
            "0020|000d": uid(0),
            "0020|000e": uid(series),
            "0020|0011": str(series),
            "0020|0032": f"-10\\-20\\{z_mm}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{len(places) - row:03d}.dcm"))
        with keeping_locale():
            writer.Execute(image)


def roi(image: str, points: Sequence[tuple[int, int]], inclusion: str = "TRUE", z_mm: float = -27.5) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    where = f"<imageZposition>{z_mm}</imageZposition>\n<imageSOP_UID>{image}</imageSOP_UID>"
    return f"<roi>\n{where}<inclusion>{inclusion}</inclusion>{edges}</roi>"


def nodule(*rois: str) -> str:
    return f"<unblindedReadNodule><noduleID>IL057_1</noduleID>{''.join(rois)}</unblindedReadNodule>"


def readings(path: Path, series: int, *sessions: str, root: str = "LidcReadMessage") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"<ResponseHeader><SeriesInstanceUid>{uid(series)}</SeriesInstanceUid></ResponseHeader>"
    mark = "<nonNodule><nonNoduleID>5</nonNoduleID><locus><xCoord>8</xCoord><yCoord>8</yCoord></locus></nonNodule>"
    person = "<servicingRadiologistID>anonymous</servicingRadiologistID>"
    body = "".join(f"<readingSession>{person}{session}{mark}</readingSession>" for session in sessions)
    path.write_text(f'{XML}<{root} uid="1" xmlns="http://www.nih.gov">{header}{body}</{root}>', "utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two patients: one with a radiograph beside its CT, one with two series, and readings in a folder of their own."""
    root = tmp_path / "lidc"
    first, second = root / "LIDC-IDRI/LIDC-IDRI-0001", root / "LIDC-IDRI/LIDC-IDRI-0132"
    ct(first / "01-01-2000-NA-NA-30178/3000566.000000-NA-03192", 11)
    ct(first / "01-01-2000-NA-NA-35511/3000923.000000-NA-62357", 12, [0.0], modality="DX")
    ct(second / "01-01-2000-NA-NA-1/3.000000-NA-21", 21)
    ct(second / "01-01-2000-NA-NA-2/3.000000-NA-22", 22)
    xml = root / "tcia-lidc-xml"
    hole = nodule(roi(uid(11, 1), SQUARE), roi(uid(11, 1), POINT, "FALSE"))
    small = nodule(roi(uid(11, 2), POINT, z_mm=-25.0))  # below 3 mm
    by_place = nodule(roi("9.9.9", [(x + 1, y) for x, y in SQUARE], z_mm=-27.4))
    readings(xml / "157/158.xml", 11, nodule(roi(uid(11, 1), SQUARE)), hole + small, by_place, "")
    readings(xml / "157/159.xml", 12, "", root="IdriReadMessage")
    for series in (21, 22):
        outside = [(-1, 2), (1, 2), (1, 4), (-1, 4)]  # encloses (0, 3)
        readings(xml / f"185/{series}.xml", series, *[nodule(roi(uid(series, 0), outside))] * 2, "", "")
    return root


def test_lidc_keeps_the_outlines_of_four_sessions(source: Path, converted) -> None:
    raw = converted("lidc", source)
    assert groups_of(raw) == {
        "LIDC-IDRI-0001": "LIDC-IDRI-0001",
        "LIDC-IDRI-0132_21": "LIDC-IDRI-0132",
        "LIDC-IDRI-0132_22": "LIDC-IDRI-0132",
    }
    image = nibabel.load(raw.cases[0].image_paths[0])
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj)[0, 0], [-1000, -999, -998, -997])
    raters = [np.asarray(nibabel.load(path).dataobj) for path in raw.cases[0].rater_paths]
    assert [int(mask.sum()) for mask in raters] == [9, 8, 9, 0]  # the hole is its edge, the point encloses nothing
    assert all(mask[..., [0, 2, 3]].sum() == 0 for mask in raters)
    np.testing.assert_array_equal(np.argwhere(raters[2][..., 1]).min(axis=0), [4, 3])  # found by its place
    agreed = np.zeros(SIZE[::-1])
    agreed[3:6, 3:6] = 1  # the first two; the third begins a column behind
    np.testing.assert_array_equal(labels_of(raw, "LIDC-IDRI-0001")[..., 1], agreed)
    np.testing.assert_array_equal(np.argwhere(labels_of(raw, "LIDC-IDRI-0132_21")), [[0, 3, 0]])


def test_lidc_leaves_out_what_has_no_partner_is_no_volume_or_was_read_once(source: Path, converted, capsys) -> None:
    xml = source / "tcia-lidc-xml/185"
    (xml / "21.xml").unlink()
    readings(xml / "99.xml", 99, "", "", "", "")
    ct(source / "LIDC-IDRI/LIDC-IDRI-0200/1/2", 31, [0.0, 2.5, 7.5, 10.0])  # a slice is missing
    readings(xml / "31.xml", 31, "", "", "", "")
    readings(xml / "22.xml", 22, nodule(roi(uid(22, 0), SQUARE)))
    raw = converted("lidc", source)
    told = " ".join(capsys.readouterr().err.split())
    assert "4 series are left out: " in told
    for reason in (
        "3.000000-NA-21: no readings of it",
        "99.xml: its series is not there",
        "5 mm apart: slices are missing",
        "22.xml: 1 reading session, 2 have to agree",
    ):
        assert reason in told
    assert sorted(groups_of(raw)) == ["LIDC-IDRI-0001"]


def test_lidc_refuses_readings_that_are_not_those_of_the_series(source: Path) -> None:
    xml = source / "tcia-lidc-xml/157/158.xml"
    readings(xml, 11, nodule(roi("9.9.9", SQUARE, z_mm=-26.2)), "", "", "")
    refused("lidc", source, r"outline on image 9\.9\.9 at z = -26\.2 mm, .* neither that image nor one at that place")
    readings(xml, 11, nodule(roi(uid(11, 1), [(3, 3), (300, 3), (3, 5)])), "", "", "")
    refused("lidc", source, r"to \(300, 5\) on image .*, which has 12 x 10 pixels")
    readings(xml, 11, nodule(roi(uid(11, 1), SQUARE, "MAYBE")), "", "", "")
    refused("lidc", source, "inclusion is 'MAYBE', allowed are TRUE and FALSE")
    xml.write_text(xml.read_text()[:200])
    refused("lidc", source, r"158\.xml cannot be read, it seems to be truncated")
    shutil.copy(source / "tcia-lidc-xml/185/21.xml", xml)
    readings(source / "tcia-lidc-xml/185/21.xml", 21, "", "", "", "")
    refused("lidc", source, "are readings of one series and differ; keep one of them")
    shutil.rmtree(source / "tcia-lidc-xml")
    refused("lidc", source, "holds no CT series together with its readings")


@pytest.mark.parametrize(
    ("points", "inside", "with_edge"),
    [
        (SQUARE, 9, 25),
        ([*SQUARE, *SQUARE], 9, 25),  # drawn twice
        ([(2, 2), (9, 2), (2, 2)], 0, 8),  # there and back
        ([(2, 2), (3, 2), (3, 3), (2, 3)], 0, 4),
        (POINT, 0, 1),
        ([(2, 4), (4, 2), (6, 4), (4, 6)], 5, 13),  # a diamond, whose edge touches at corners alone
    ],
)
def test_what_an_outline_encloses(points: Sequence[tuple[int, int]], inside: int, with_edge: int) -> None:
    for including, count in ((False, inside), (True, with_edge)):
        mask = np.zeros(SIZE, np.uint8)
        filled(mask, np.array(points), with_edge=including)
        assert mask.sum() == count
