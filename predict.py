"""Predict with a saved or Hub model: X-ray files and folders to a table, and heatmaps on request.

    python predict.py export/ --model checkpoints/cxr-densenet121 --output predictions.csv

The table grows as batches finish; the same command again goes on where an interrupted one stopped.
In Python: `for prediction in predict(["export"], *load_model("checkpoints/cxr-densenet121")): ...`
"""

import argparse
import hashlib
import io
import logging
import os
import sys
import traceback
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePath

import torch
from PIL import Image
from tqdm import tqdm

from modeling import CxrImageProcessor, load_model
from modeling.exported_cxr import ExportedClassifier, is_exported, load_exported
from modeling.heatmap_cxr import CAM_METHODS, TOKEN_METHOD, check_method
from modeling.image_cxr import CxrImage
from modeling.modeling_cxr import CxrClassifier
from modeling.sandbox_cxr import Sandbox
from prediction.files import check_paths, find_files
from prediction.table import STATUSES, Prediction, reopen, to_row, to_text
from prediction.version import model_version
from prediction.writing import NO_ROOM, only_writer, write_whole

logger = logging.getLogger("predict")
MAX_THREADS = 8  # each may hold an X-ray of 64 million pixels
EPILOG = """
A folder is searched with its subfolders; every file in it is tried, whatever its suffix, but hidden
files, DICOMDIR and what a system keeps beside, as Thumbs.db or __MACOSX. Links to folders are not
followed.

A row a file: status is ok, uncertain (a human should read it), refused (no chest X-ray that the
model knows) or error. A file that has a row is not tried again; delete its row to have it tried.

Exit code: 0 if every file was read, refused or not; 1 if the table has an error; 2 if the program
could not do its work; 130 if it was interrupted.
"""


def predict(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    model: CxrClassifier | ExportedClassifier,
    processor: CxrImageProcessor,
    *,
    method: str | None = None,
    target: str | None = None,
    heatmaps: str | os.PathLike | None = None,
    ten_crop: bool = False,
    batch_size: int = 16,
    done: Container[str] = (),
    leave_out: Iterable[str | os.PathLike] = (),
) -> Iterator[Prediction]:
    """Answers for files and for all in folders, one by one as batches finish.

    A thread a core, eight at most, reads ahead, two batches at most, and keeps images at the
    network's size alone: memory does not grow with the number of files, but for the names in one
    folder.

    Args:
        paths: a file or folder, or several, none inside another.
        model: as `load_model` or `load` gives it.
        processor: the model's.
        method: of the heatmaps, see `CxrClassifier.explain`; None makes none.
        target: the class that they explain; None for the most probable one.
        heatmaps: folder to draw them in, one PNG a file, over the X-ray at its own size; colour is
            the heatmap times the probability of the class it explains. Needs `method`.
        ten_crop: see `CxrClassifier.assess`; goes without `method`.
        batch_size: files a forward pass.
        done: files that need no answer. A batch with one that does is run as a whole, so that an
            answer does not depend, in its last digits, on where an earlier run stopped.
        leave_out: files and folders not to read; `heatmaps` is not read either.

    Yields:
        A prediction a file, in the order of `find_files`. Whatever is raised while a file is read
        becomes that file's error.

    Raises:
        ValueError: no such method or class, `heatmaps` without `method`, or `method` with
            `ten_crop`.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if heatmaps is not None and method is None:
        choices = ", ".join(model.heatmap_methods)
        raise ValueError(f"heatmaps in {heatmaps} need a method: {choices}.")

    def answer(files: list[str], readings: list[Future]) -> Iterable[Prediction]:
        results = [reading.result() for reading in readings]
        images = [image for image in results if isinstance(image, CxrImage)]
        answers = iter(model.assess(images, processor, target, method, ten_crop) if images else ())
        predictions = [
            Prediction(file, next(answers)) if isinstance(image, CxrImage) else image
            for file, image in zip(files, results)
        ]
        predictions = [prediction for prediction in predictions if prediction.file not in done]
        if heatmaps is not None:
            return pool.map(lambda one: _draw(one, processor, sandbox, heatmaps), predictions)
        return predictions

    if heatmaps is not None:
        os.makedirs(heatmaps, exist_ok=True)
        leave_out = [*leave_out, heatmaps]
    found = find_files(paths, leave_out)
    reader = processor.frame() if ten_crop else processor
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count()))
    sandbox = processor.sandbox()
    try:
        ahead = deque()
        while files := list(islice(found, batch_size)):
            if all(file in done for file in files):
                continue
            ahead.append((files, [pool.submit(_read, file, reader, sandbox) for file in files]))
            if len(ahead) > 2:
                yield from answer(*ahead.popleft())
        for batch in ahead:
            yield from answer(*batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(file: str, processor: CxrImageProcessor, sandbox: Sandbox) -> CxrImage | Prediction:
    """The image at the network's size; a Prediction with the error where there is none."""
    try:
        if os.path.isdir(file):
            os.listdir(file)  # raises what kept `find_files` from it
            raise ValueError("a link to a folder is not followed; name the folder itself.")
        image = sandbox.open(file)
        return image._replace(pixels=processor.resize(image.pixels))
    except Exception as error:  # whatever it is, thousands of other files wait
        return Prediction(file, error=_reason(error, file))


def _draw(
    prediction: Prediction,
    processor: CxrImageProcessor,
    sandbox: Sandbox,
    folder: str | os.PathLike,
) -> Prediction:
    """The prediction with its heatmap drawn."""
    file, answer = prediction.file, prediction.answer
    if answer is None or answer.heatmap is None:
        return prediction
    try:
        # Read again rather than kept: a batch of X-rays at full size may take gigabytes.
        pixels = sandbox.open(file).pixels
        overlay = Image.fromarray(processor.overlay(pixels, answer.heat(processor, *pixels.shape)))
    except Exception as error:
        return prediction._replace(error=f"no heatmap: {_reason(error, file)}")
    png = io.BytesIO()
    overlay.save(png, "PNG", compress_level=1)  # 6 takes six times as long for a seventh less
    path = os.path.join(folder, heatmap_name(file))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, png.getvalue())
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return prediction._replace(error=f"no heatmap: {_reason(error, file)}")
    return prediction._replace(heatmap=path)


def load(name: str) -> tuple[CxrClassifier | ExportedClassifier, CxrImageProcessor]:
    """A model and its processor: `load_model`, or of a file of export.py `load_exported`.

    A model of PyTorch is put on the GPU where there is one.

    Raises:
        ValueError, OSError, ImportError: see these.
    """
    if is_exported(name):
        model, settings = load_exported(name)
        return model, CxrImageProcessor.from_dict(vars(settings))
    model, processor = load_model(name)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def heatmap_name(file: str) -> str:
    """Where in its folder a file's heatmap lies: the file's path with .png added.

    A path that leads out of the working folder loses its root and `..`, and gets a hash of what it
    was, so that no two files share a heatmap.
    """
    path = PurePath(file)
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    if len(parts) < len(path.parts):
        parts[-1] += "." + hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    return os.path.join(*parts) + ".png"


def _reason(error: Exception, file: str) -> str:
    """What an exception says, without the path, which has a column of its own."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    text = " ".join(str(error).replace(f"{file}: ", "").split())
    expected = isinstance(error, (ValueError, OSError, ImportError))
    return text if expected else f"{type(error).__name__}: {text}"


# --------------------------------------------------------------------------------------------- main


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of predict.py; ends the program where one is wrong."""
    parser = argparse.ArgumentParser(
        description="Predict with a chest X-ray classifier. Research only, not a medical device.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="FILE_OR_FOLDER", help="PNG, JPEG, DICOM, ..., mixed")
    add(
        "--model",
        required=True,
        metavar="PATH_OR_ID",
        help="a saved folder, Hub id or id@commit, or a file of export.py",
    )
    add("--output", required=True, metavar="FILE", help="the table; if it exists, go on with it")
    add("--format", choices=("csv", "jsonl"), help="of the table; if not given, by its suffix")
    add("--heatmaps", metavar="DIR", help="draw a PNG a file, at the X-ray's own size")
    methods = (*CAM_METHODS, TOKEN_METHOD)
    add("--method", choices=methods, help="of the heatmaps (default: grad_cam)")
    add("--target", metavar="CLASS", help="explain this class (default: the most probable one)")
    add("--ten_crop", action="store_true", help="mean probability over ten crops; no heatmaps")
    add("--batch_size", type=int, default=16, help="files a forward pass (default: 16)")
    args = parser.parse_args(argv)
    args.output = Path(args.output)
    args.format = args.format or args.output.suffix[1:]
    if args.format not in ("csv", "jsonl"):
        parser.error(f"--output {args.output} ends in neither .csv nor .jsonl; give --format.")
    if args.heatmaps is None and (args.method or args.target):
        parser.error("--method and --target are for --heatmaps DIR.")
    if args.ten_crop and args.heatmaps is not None:
        parser.error("--ten_crop has no heatmaps; leave out --heatmaps.")
    if args.heatmaps is not None:
        args.method = args.method or "grad_cam"
    if args.batch_size < 1:
        parser.error(f"--batch_size is {args.batch_size}; it is 1 or more.")
    return args


def main(argv: list[str]) -> int:
    """Answers for the files as the flags say, into the table; the exit code is 0 or 1.

    Raises:
        ValueError: no files, no such class, or a table of another model.
        OSError: a path or the model cannot be found, or the table cannot be written.
    """
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)  # of no other: the Hub's client has a line for every request
    check_paths(args.paths)
    model, processor = load(args.model)
    if isinstance(model, ExportedClassifier):
        if args.ten_crop:
            raise ValueError(f"{args.model} has no ten crops; use the model that it was made of.")
        names = model.classes
    else:
        names = [model.config.id2label[k] for k in range(model.config.num_labels)]
    if args.method is not None:
        check_method(args.method, model.heatmap_methods)
    if args.target is not None and args.target not in names:
        raise ValueError(f"--target {args.target} is no class; choose {', '.join(names)}.")

    # What is done, and what is left
    constants = {"model": model_version(args.model)}
    if args.heatmaps is not None:
        constants |= {"method": args.method, "target": args.target or "predicted class"}
    if args.ten_crop:
        constants |= {"views": "ten crops"}
    columns = list(to_row(Prediction(""), names, constants))
    ours = [path for path in (args.output, args.heatmaps) if path is not None]
    if not args.output.exists() and next(find_files(args.paths, ours), None) is None:
        raise ValueError(f"there are no files in {', '.join(args.paths)}.")

    with only_writer(args.output):
        done = {}
        if args.output.exists():
            done = reopen(args.output, columns, constants, args.format)
        left = sum(file not in done for file in find_files(args.paths, ours))
        if done:
            logger.info("%s has %d files; %d are left.", args.output, len(done), left)

        # Predictions
        predictions = predict(
            args.paths,
            model,
            processor,
            method=args.method,
            target=args.target,
            heatmaps=args.heatmaps,
            ten_crop=args.ten_crop,
            batch_size=args.batch_size,
            done=done,
            leave_out=ours,
        )
        statuses = Counter(done.values())
        with args.output.open("a", encoding="utf-8", errors="surrogateescape", newline="") as table:
            if args.format == "csv" and table.tell() == 0:
                table.write(to_text(dict(zip(columns, columns)), "csv"))
            for count, prediction in enumerate(tqdm(predictions, total=left, unit="file"), 1):
                row = to_row(prediction, names, constants)
                statuses[row["status"]] += 1
                table.write(to_text(row, args.format))
                table.flush()
                if count % args.batch_size == 0:
                    os.fsync(table.fileno())  # a power cut loses a batch at most
            os.fsync(table.fileno())
    counts = ", ".join(f"{statuses[status]} {status}" for status in STATUSES)
    logger.info("%d files: %s. Written to %s", statuses.total(), counts, args.output)
    return 1 if statuses["error"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"predict.py: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("predict.py: interrupted; the same command goes on from here.\n")
        sys.exit(130)
    except Exception:  # Python's own exit code for these is 1, which here means something else
        traceback.print_exc()
        sys.exit(2)
