"""Converters of 3D data sets, on miniatures of the folders that their owners distribute."""

from __future__ import annotations

from tests.dataset_conversion.conftest import groups_of, label_volume, labels_of, refused, volume


def test_covid_ct(tmp_path, converted):
    for name in ("coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3"):
        volume(tmp_path / f"z/COVID-19-CT-Seg_20cases/{name}.nii.gz")
        label_volume(tmp_path / f"z/Infection_Mask/{name}.nii.gz", 1)
    raw = converted("covid_ct", tmp_path / "z")
    assert raw.description.channel_names == ("CT",)
    assert groups_of(raw) == {
        "coronacases_001": "coronacases_001",
        "radiopaedia_10_85902_1": "radiopaedia_10",
        "radiopaedia_10_85902_3": "radiopaedia_10",
    }
    assert labels_of(raw, "coronacases_001").sum() == 1
    label_volume(tmp_path / "z/Infection_Mask/coronacases_001.nii.gz", 3)
    refused("covid_ct", tmp_path / "z", r"coronacases_001\.nii\.gz holds the values \[3\], known are \[0, 1\]")


def test_covid_ct_as_kaggle_has_it(tmp_path, converted):
    volume(tmp_path / "k/ct_scans/radiopaedia_org_covid-19-pneumonia-14_85914_0-dcm.nii")
    label_volume(tmp_path / "k/infection_mask/radiopaedia_14_85914_0.nii", 1)
    volume(tmp_path / "k/ct_scans/coronacases_org_002.nii")
    label_volume(tmp_path / "k/infection_mask/coronacases_002.nii", 1)
    raw = converted("covid_ct", tmp_path / "k")
    assert [case.case_id for case in raw.cases] == ["coronacases_002", "radiopaedia_14_85914_0"]
    refused("covid_ct", tmp_path / "k/ct_scans", "holds none of the folders COVID-19-CT-Seg_20cases and ct_scans")
