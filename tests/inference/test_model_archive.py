"""A model as an archive: what is in it, that it predicts the same, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.test_predictor import listing, make_model, make_pictures
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.serialization import read_object, write_json
from unisegdiff_pipeline.inference import archive_reading, model_import
from unisegdiff_pipeline.inference.archive_reading import read_manifest
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.model_export import (
    export_model,
    without_cases,
    without_chosen_cases,
    without_paths,
)
from unisegdiff_pipeline.inference.model_folder import open_model_folder
from unisegdiff_pipeline.inference.model_import import import_model
from unisegdiff_pipeline.inference.model_scores import ClassScores, FoldScores, ModelScores
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import read_settings, write_settings

MODEL = "StagedDiffusionTrainer__tiny"
ROOT = f"Dataset001_X/{MODEL}/"
CASES = ["Meier_Anna", "b; c", "d"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model of two folds with all that a training leaves behind, names of cases and paths among it."""
    model = make_model(tmp_path / "results", 2, folds=("0", "1"))
    labels = {"background": 0, "lesion": 1}
    described = {"channel_names": {"0": "x"}, "labels": labels, "file_ending": ".png", "description": "from /data/raw"}
    write_json(model / "dataset.json", {**described, "dataset": {"Meier_Anna": {"images": ["/home/a/b.png"]}}})
    of_class = {"class_name": "lesion", "num_cases": 2, "num_scored": 1, "num_false_positive": 1}
    of_class |= {"mean_dice": 0.5, "mean_iou": None}
    for fold in ("0", "1"):
        folder = model / f"fold_{fold}"
        request = {"train_cases": CASES[:1], "holdout_cases": CASES[1:2], "validation_cases": CASES[2:]}
        write_json(folder / "request.json", {**request, "pretrained": "/home/a/start"})
        summary = {"summary": {"classes": [of_class]}, "cases": [{"case_id": "d", "scores": []}], "not_validated": []}
        write_json(folder / "validation" / "summary.json", summary)
        for name in ("checkpoint.pt", "phase_1.safetensors", "report.html", "validation/d.png"):
            (folder / name).write_bytes(b"state of the training")
        settings = read_settings(folder)
        write_settings(folder, type(settings)(**{**vars(settings), "chosen_on": "1 case of the inner hold-out: b; c"}))
    return model


@pytest.fixture
def archive(trained: Path, tmp_path: Path) -> Path:
    export_model(trained, tmp_path / "m.zip")
    return tmp_path / "m.zip"


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def text(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return "\n".join(archive.read(name).decode() for name in archive.namelist() if not name.endswith("tensors"))


def test_an_archive_holds_what_prediction_needs_and_the_hash_of_each_file(archive: Path, trained: Path) -> None:
    files = ["dataset.json", "fold_0/inference.json", "fold_0/weights.safetensors", "fold_1/inference.json"]
    files += ["fold_1/weights.safetensors", "model_card.md", "plans.json", "scores.json"]
    assert names(archive) == [*(ROOT + name for name in files), "manifest.json"]
    manifest = read_manifest(archive)
    weights = (trained / "fold_1/weights.safetensors").read_bytes()
    record = manifest.files["fold_1/weights.safetensors"]
    assert (record.sha256, record.num_bytes) == (hashlib.sha256(weights).hexdigest(), len(weights))
    assert manifest.folds == ("0", "1")


def test_neither_cases_nor_paths_are_in_an_archive(archive: Path, tmp_path: Path) -> None:
    found = text(archive)
    for word in (*CASES[:2], "/home", "/data", "a/start", str(tmp_path), "state of the training"):
        assert word not in found
    assert '"description": "from raw"' in found


def test_the_coded_names_of_classes_go_along(trained: Path, tmp_path: Path) -> None:
    codes = {"lesion": {"value": "108369006", "meaning": "Neoplasm"}}
    write_json(trained / "dataset.json", {**read_object(trained / "dataset.json"), "class_codes": codes})
    export_model(trained, tmp_path / "m.zip")
    model = open_model_folder(tmp_path / "m.zip")
    assert read_object(model.folder / "dataset.json")["class_codes"] == codes


def test_case_scores_on_request_only(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "m.zip", with_case_scores=True)
    found = text(tmp_path / "m.zip")
    assert '"case_id": "d"' in found
    assert "inner hold-out: b; c" in found
    assert "/home" not in found


def test_the_recipe_goes_along_where_it_names_the_model(trained: Path, tmp_path: Path) -> None:
    best = trained.parent / "best.json"
    write_json(best, {"members": [{"model": "Other__2d"}], "reason": "better on Meier_Anna"})
    export_model(trained, tmp_path / "a.zip")
    assert f"{ROOT}best.json" not in names(tmp_path / "a.zip")
    write_json(best, {"members": [{"model": MODEL}], "left_out": ["d"], "candidates": [{"case_id": "d"}]})
    export_model(trained, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert json.loads(archive.read(f"{ROOT}best.json")) == {
            "members": [{"model": MODEL}],
            "left_out": [],
            "candidates": [],
        }
    model = import_model(tmp_path / "b.zip", tmp_path / "other")
    export_model(model.folder, tmp_path / "c.zip")
    assert (tmp_path / "c.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_card_says_the_scores_with_their_n(trained: Path, tmp_path: Path) -> None:
    export_model(trained, tmp_path / "m.zip", notes="Ask *us* first.")
    found = text(tmp_path / "m.zip")
    assert "| lesion | 4 | 2 | 0.500 | - | 2 |" in found
    assert "| 1 | 0.500 (1) |" in found
    assert "Few cases to score: lesion (n = 2)" in found
    assert "## Notes of the authors\n\nAsk *us* first." in found


def test_scores_of_folds_weigh_every_case_alike() -> None:
    def fold(name: str, scored: int, dice: float) -> FoldScores:
        return FoldScores(name, 1, 1, scored, 0, (ClassScores("lesion", scored, scored, 0, dice, dice),))

    pooled = ModelScores((fold("0", 1, 1.0), fold("1", 3, 0.0))).pooled()
    assert pooled == (ClassScores("lesion", 4, 4, 0, 0.25, 0.25),)


def test_equal_models_give_equal_archives(trained: Path, archive: Path, tmp_path: Path) -> None:
    os.utime(trained / "fold_0/weights.safetensors", (1, 1))
    export_model(trained, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_an_imported_model_exports_as_the_same_archive(archive: Path, tmp_path: Path) -> None:
    model = import_model(archive, tmp_path / "other")
    export_model(model.folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("3 cases of the inner hold-out: a, b, c", "3 cases of the inner hold-out"),
        ("1 case of the inner hold-out: a; 1 is too few (6)", "1 case of the inner hold-out; 1 is too few (6)"),
        (
            "temperature on 1 case of the inner hold-out: a; spread are the defaults, for lack of time (--max-time)",
            "temperature on 1 case of the inner hold-out; spread are the defaults, for lack of time (--max-time)",
        ),
        ("1 case of the inner hold-out: a; b", "1 case of the inner hold-out"),
        ("nothing; defaults", "nothing; defaults"),
    ],
)
def test_chosen_on_without_names(before: str, after: str) -> None:
    assert without_chosen_cases(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/home/Jo Smith/x", "x"),
        (r"C:\Users\jo\x", "x"),
        ("follows /home/jo/model, as asked", "follows model, as asked"),
        ("2 mm/s, 1/2, https://a.org/b/c", "2 mm/s, 1/2, https://a.org/b/c"),
        ({"a": ["/x/y"]}, {"a": ["y"]}),
    ],
)
def test_of_paths_the_last_part_is_left(before: object, after: object) -> None:
    assert without_paths(before) == after


def test_what_is_said_of_cases_goes() -> None:
    content = {"a": 1, "folds": ["a", "x"], "cases": [{"case_id": "a", "dice": 1}], "mean": {"b": 2, "x": 3}}
    assert without_cases(content, {"a", "b"}) == {"folds": ["x"], "cases": [], "mean": {"x": 3}}


def test_predictions_of_folder_archive_and_import_are_equal_byte_for_byte(
    trained: Path, archive: Path, tmp_path: Path
) -> None:
    images, wanted = make_pictures(tmp_path / "in", 2), {"save_samples": True, "save_probabilities": True}
    outputs = []
    for i, model in enumerate((trained, archive, import_model(archive, tmp_path / "other").folder)):
        out = tmp_path / f"out{i}"
        assert predict_folder(PredictRequest(images, out, model, device="cpu", **wanted)) == 2
        outputs.append({name: (out / name).read_bytes() for name in listing(out) - {"manifest.json"}})
        assert json.loads((out / "manifest.json").read_text())["model"] == str(model)
    assert outputs[0] == outputs[1] == outputs[2]
    assert any(name.endswith(".npz") for name in outputs[0])


def test_what_is_unpacked_for_prediction_goes_with_the_model(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "tmp"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    model = Predictor(archive, device="cpu")
    assert [path.name for path in work.glob("*/*")] == [MODEL]
    del model
    assert not list(work.iterdir())


def test_an_import_makes_the_model_folder_and_nothing_else(archive: Path, tmp_path: Path) -> None:
    results = tmp_path / "new" / "results"
    model = import_model(archive, results)
    assert model.folder == results / "Dataset001_X" / MODEL
    assert listing(results) == {name for name in names(archive) if name != "manifest.json"}


def test_an_existing_model_is_refused_and_replaced_on_request(trained: Path, archive: Path, tmp_path: Path) -> None:
    results = tmp_path / "other"
    folder = import_model(archive, results).folder
    (folder / "own.txt").write_text("mine")
    with pytest.raises(UsdError, match=r"is there already.*--overwrite"):
        import_model(archive, results)
    assert (folder / "own.txt").is_file()
    with locked(folder / ".lock-fold_0", "the fold"), pytest.raises(UsdError, match="has been working on"):
        import_model(archive, results, overwrite=True)
    assert import_model(archive, results, overwrite=True).folds == ("0", "1")
    assert not (folder / "own.txt").exists()
    assert {path.name for path in folder.parent.iterdir()} == {MODEL}


def test_a_failed_replacement_leaves_the_former_model(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "other"
    folder = import_model(archive, results).folder
    before = listing(results)

    def fails(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_import, "require_usable", fails)
    with pytest.raises(KeyboardInterrupt):
        import_model(archive, results, overwrite=True)
    assert listing(results) == before
    with pytest.raises(KeyboardInterrupt):
        import_model(archive, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert folder.is_dir()


Change = Callable[[zipfile.ZipFile], None]


def changed(archive: Path, tmp_path: Path, **entries: bytes | None) -> Path:
    """A copy with some files of the model replaced (None: left out), whose manifest fits them."""
    path = tmp_path / "changed.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        contents = {name: source.read(name) for name in source.namelist()}
        manifest = json.loads(contents.pop("manifest.json"))
        for name, content in entries.items():
            if content is None:
                del contents[ROOT + name], manifest["files"][name]
            else:
                contents[ROOT + name] = content
                manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        for name, content in contents.items():
            target.writestr(name, content)
        target.writestr("manifest.json", json.dumps(manifest))
    return path


def entry(name: str, mode: int = 0) -> Change:
    def change(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, b"/etc/passwd")

    return change


def link_in_place_of_a_file(archive: zipfile.ZipFile) -> None:
    archive.getinfo(f"{ROOT}plans.json").external_attr = (stat.S_IFLNK | 0o777) << 16
    archive._didModify = True  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (entry("../evil.json"), "leads out"),
        (entry(f"{ROOT}fold_0/../../../evil"), "leads out"),
        (entry("/etc/evil.json"), "absolute name"),
        (entry("C:/evil.json"), "absolute name"),
        (entry("a\\..\\evil.json"), "absolute name|another system"),
        (entry(f"{ROOT}best.json", stat.S_IFLNK | 0o777), "is a link"),
        (entry(f"{ROOT}best.json", stat.S_IFCHR | 0o600), "a device"),
        (entry(f"{ROOT}best.json", stat.S_IFIFO | 0o600), "a device"),
        (link_in_place_of_a_file, "is a link"),
        (entry(f"{ROOT}plans.json"), "stands there twice"),
        (entry(f"{ROOT}fold_0/checkpoint.pt"), "a pickle can run code"),
        (entry(f"{ROOT}fold_0/weights.pkl"), "a pickle can run code"),
        (entry(f"{ROOT}run.py"), "no file of a model archive"),
        (entry(f"{ROOT}fold_0/validation/a.nii.gz"), "no file of a model archive"),
        (entry(f"{ROOT}best.json"), "no file of a model archive"),  # it is not in the manifest
        (entry("empty/"), "no file of a model archive"),
        (entry("new\nline"), "characters that are none of a name"),
    ],
)
def test_an_entry_of_another_kind_is_refused(archive: Path, tmp_path: Path, change: Change, named: str) -> None:
    with zipfile.ZipFile(archive, "a") as target:
        change(target)
    for use in (lambda: import_model(archive, tmp_path / "other"), lambda: open_model_folder(archive)):
        with pytest.raises(UsdError, match=named):
            use()
    assert not (tmp_path / "other").exists()


PICKLE = b"\x80\x04\x95\x19\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"fold_0/weights.safetensors": PICKLE}, "is no safetensors file"),
        ({"fold_0/weights.safetensors": (2).to_bytes(8, "little") + b"{}"}, "fold_0/weights.safetensors"),
        ({"fold_0/weights.safetensors": (4).to_bytes(8, "little") + b"{a}b"}, "no valid JSON"),
        ({"plans.json": b"[" * 60 + b"]" * 60}, "nests lists"),
        ({"plans.json": b"{}"}, "missing key"),
        ({"fold_1/inference.json": b'{"lam_a": 1}'}, "missing key lam_c"),
        ({"model_card.md": b"\xff"}, "no text in UTF-8"),
        ({"fold_1/inference.json": None}, "lacks fold_1/inference.json"),
        ({"fold_2/weights.safetensors": b"1"}, "no file of a model archive"),
    ],
)
def test_content_that_is_not_what_it_should_be_is_refused(archive: Path, tmp_path: Path, entries, named: str) -> None:
    with pytest.raises(UsdError, match=named):
        import_model(changed(archive, tmp_path, **entries), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_of_another_plan_are_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        plans = json.loads(source.read(f"{ROOT}plans.json"))
    plans["configurations"]["tiny"]["network"]["levels"][1]["features"] = 7
    with pytest.raises(UsdError, match="trained with another plan"):
        import_model(changed(archive, tmp_path, **{"plans.json": json.dumps(plans).encode()}), tmp_path / "other")


def test_a_byte_that_was_changed_is_found(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as source:
        info = source.getinfo(f"{ROOT}fold_1/weights.safetensors")
    place = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UsdError, match=r"fold_1/weights\.safetensors"):
        import_model(archive, tmp_path / "other")


def test_a_file_whose_hash_is_another_is_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"No medical device", b"A  medical device"))
    with pytest.raises(UsdError, match=r"model_card\.md' is not what its manifest says"):
        read_manifest(path)


def test_a_zip_bomb_is_refused_by_what_it_declares(archive: Path, tmp_path: Path) -> None:
    """Three files of zeros, 40 MB each, none of them above the limit of a single file."""
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as target:
        for i in range(3):
            target.writestr(f"{ROOT}bomb{i}.json", bytes(40 << 20))
    with pytest.raises(UsdError, match=r"its entries declare 12\d+ .*200 times its size"):
        read_manifest(archive)


def test_an_entry_that_declares_too_much_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_reading, "largest_bytes", lambda name: 100)
    with pytest.raises(UsdError, match=r"declares \d+ bytes; allowed are 100"):
        read_manifest(archive)


def test_an_entry_that_holds_more_than_it_declares_is_refused(archive: Path, tmp_path: Path) -> None:
    """The declared size of the card in the directory is made one byte; reading stops there."""
    content = bytearray(archive.read_bytes())
    start = content.rindex(f"{ROOT}model_card.md".encode()) - 46
    assert content[start : start + 4] == b"PK\x01\x02"
    content[start + 24 : start + 28] = (1).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(UsdError, match=r"model_card\.md"):
        import_model(archive, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UsdError, match="is no archive of a model"):
        open_model_folder(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as target:
        target.writestr("a.txt", "")
    with pytest.raises(UsdError, match=r"holds no manifest\.json"):
        open_model_folder(tmp_path / "b.zip")


def test_an_archive_packed_again_by_another_program_is_taken(archive: Path, tmp_path: Path) -> None:
    """With entries for folders, in another order, and weights compressed, too."""
    path = tmp_path / "again.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for folder in ("Dataset001_X/", ROOT, f"{ROOT}fold_0/", f"{ROOT}fold_1/"):
            target.writestr(folder, b"")
        for name in reversed(source.namelist()):
            target.writestr(name, source.read(name))
    assert open_model_folder(path).folds == ("0", "1")


def test_a_later_version_is_named(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "later.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(UsdError, match=r"version 2.*Update the package"):
        read_manifest(path)


def test_exports_that_are_refused_leave_nothing(trained: Path, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(UsdError, match="is there already; replace it with --overwrite"):
        export_model(trained, archive)
    with pytest.raises(UsdError, match=r"does not end in \.zip"):
        export_model(trained, tmp_path / "m.tar")
    with pytest.raises(UsdError, match="is an archive already"):
        export_model(archive, tmp_path / "n.zip")
    (trained / "fold_1/weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsdError, match="cannot be read"):
        export_model(trained, archive, overwrite=True)
    assert archive.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"results", "m.zip"}
