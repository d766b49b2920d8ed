"""Classifies a folder of any size into a CSV file, and counts how many images have the label of their sub-folder.

It needs the base install only. Run this in the folder of the repository. The images and the model are those that
`examples/import_onnx.py` makes:

    cnnserve serve --repository models
    python examples/folder_to_csv.py digits digits.csv --model digits

`cnnserve classify digits --output digits.csv` writes a CSV file without a program. Copy this one if you want columns of
your own, or if you want to know the accuracy of an exported model: name each sub-folder by the label of its images.
"""

import argparse
import csv
import sys
from pathlib import Path

from cnnserve_client import Client

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def main() -> int:
    """Writes one row for each image. Returns 1 if an image failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--address", default="127.0.0.1:8001")
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    right = failed = 0
    with Client(arguments.address) as client, arguments.csv.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "folder", "label", "probability", "error"))
        results = client.classify_many(paths, model=arguments.model, top_k=1)
        for path, result in zip(paths, results, strict=True):
            folder = path.parent.name
            if result.error is None:
                rows.writerow((path, folder, result.top.label, f"{result.top.probability:.4f}", ""))
                right += result.top.label == folder
            else:
                rows.writerow((path, folder, "", "", result.error))
                failed += 1
    print(f"{len(paths)} images: {right} have the label of their folder, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
