"""A model behind HTTP: POST an image, get a zip file with its mask, uncertainty and lesions.

pip install 'unisegdiff_pipeline[serve]'
python http_service.py MODEL_FOLDER [PORT]
curl --fail-with-body -F image=@scan.nii.gz "http://127.0.0.1:8000/predict?samples=8" -o scan.zip

Several channels are several files, named as usd_predict takes them: -F image=@a_0000.nii.gz -F image=@a_0001.nii.gz.
The service has no login and no encryption: put it behind a server that has both.
"""

import io
import sys
import threading
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Response, UploadFile

import unisegdiff_pipeline as usd

AT_ONCE = 2  # predictions; further requests wait, because each needs memory of its own
MAX_FILES, MAX_BYTES = 20, 1 << 30


def make_app(model: usd.Predictor) -> FastAPI:
    """The service of a model, which all requests share."""
    app = FastAPI(title="unisegdiff_pipeline")
    free = threading.BoundedSemaphore(AT_ONCE)

    @app.get("/")
    def about() -> dict[str, object]:
        plans = model.model.plans
        return {"model": repr(model), "channels": plans.channel_names, "classes": model.labels.names}

    @app.post("/predict")
    def predict(
        image: list[UploadFile],  # FastAPI answers functions that are not async from threads, several at a time
        samples: Annotated[int | None, Query(ge=0, le=100)] = None,
        seed: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        with TemporaryDirectory() as folder:  # nothing of a request outlasts it
            try:
                paths = stored(image, Path(folder))
                with free:
                    prediction = model.predict(paths, num_samples=samples, seed=seed)
                    saved = prediction.save(Path(folder) / "prediction")
            except usd.UsdError as error:  # says what is wrong with the image, and what to do
                raise HTTPException(422, str(error).replace(f"{folder}/", "")) from None
            names = {"Content-Disposition": f'attachment; filename="{prediction.case_id}.zip"'}
            return Response(zipped(saved), media_type="application/zip", headers=names)

    return app


def stored(uploads: list[UploadFile], folder: Path) -> list[Path]:
    """The files of a request in a folder, under their own names."""
    if len(uploads) > MAX_FILES or sum(upload.size or 0 for upload in uploads) > MAX_BYTES:
        raise HTTPException(413, f"allowed are {MAX_FILES} files of {MAX_BYTES} bytes together")
    paths = []
    for upload in uploads:
        name = upload.filename or ""
        if Path(name).name != name or "\\" in name or name.startswith(".") or (folder / name).exists():
            raise HTTPException(422, f"{name!r} cannot be the name of a file here; name each file CASE_0000.ext, ...")
        (folder / name).write_bytes(upload.file.read())
        paths.append(folder / name)
    return paths


def zipped(folder: Path) -> bytes:
    """All files of a prediction but its bookkeeping."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                archive.write(path, name)
    return stream.getvalue()


if __name__ == "__main__":
    uvicorn.run(make_app(usd.Predictor(sys.argv[1])), port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
