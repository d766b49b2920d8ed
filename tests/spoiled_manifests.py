"""Spoiled manifests: limits that a manifest sets itself, and manifests that can be understood in two ways.

`BOTH` are for manifests of schema 1 and 2, `SECOND` for those of schema 2.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from spoiling import GONE, Spoiling, content, field, file, text
from support import golden_rows, rewrite_manifest

MIB = 1 << 20


def replaced(kind: str) -> Any:
    """The manifest gives way to something that is no file."""

    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("gone.json")

    return change


def more_images(count: int) -> Any:
    """The manifest names copies of the golden image instead."""

    def change(folder: Path) -> None:
        names = [f"golden-{number}.png" for number in range(count)]
        for name in names:
            (folder / name).write_bytes((folder / "golden.png").read_bytes())
        first = golden_rows(folder)[0].tobytes()
        (folder / "golden.bin").write_bytes(first * count)
        field("golden/images", names)(folder)
        for name in names:
            field(f"files/{name}", {})(folder)
        rewrite_manifest(folder)

    return change


def rows(*values: float) -> Any:
    """The golden probabilities become these, for the first classes."""

    def change(data: bytes) -> bytes:
        changed = np.frombuffer(data, "<f4").copy()
        changed[: len(values)] = values
        return changed.tobytes()

    return file("golden.bin", change)


BOTH = [
    Spoiling("tolerance 1", field("golden/tolerance", 1), r"golden\.tolerance is 1, .* at most 0\.0001, .* fp32"),
    Spoiling(
        "tolerance 1.1e-4", field("golden/tolerance", 1.1e-4), r"golden\.tolerance is 0\.00011, .* at most 0\.0001"
    ),
    Spoiling("tolerance 0", field("golden/tolerance", 0), r"golden\.tolerance is 0, expected more than 0"),
    Spoiling("tolerance -1", field("golden/tolerance", -1), r"golden\.tolerance is -1, expected more than 0"),
    Spoiling("tolerance Infinity", field("golden/tolerance", np.inf), "Infinity is not JSON, expected a finite number"),
    Spoiling("tolerance NaN", field("golden/tolerance", np.nan), "NaN is not JSON, expected a finite number"),
    Spoiling("tolerance 1e999", text('"tolerance": 0.0001', '"tolerance": 1e999'), "is inf, expected a finite number"),
    Spoiling("tolerance as text", field("golden/tolerance", "0.0001"), r"is '0\.0001', expected a finite number"),
    Spoiling("tolerance true", field("golden/tolerance", True), "is True, expected a finite number"),
    Spoiling("tolerance of fp16", field("golden/tolerance", 1e-2), r"golden\.tolerance is 0\.01, .* at most 0\.0001"),
    Spoiling(
        "tolerance beyond fp16",
        lambda folder: (field("golden/tolerance", 0.011)(folder), field("onnx/precision", "fp16")(folder)),
        r"golden\.tolerance is 0\.011, .* at most 0\.01, .* fp16",
    ),
    Spoiling(
        "precision of another file",
        lambda folder: (field("golden/tolerance", 0.01)(folder), field("onnx/precision", "fp16")(folder)),
        r"onnx\.precision is fp16, but the graph computes in fp32",
    ),
    Spoiling(
        "int8 of another file",
        field("onnx/precision", "int8"),
        r"onnx\.precision is int8, but the graph computes in fp32",
    ),
    Spoiling("golden twice", text('"golden": {', '"golden": {}, "golden": {'), "has the key 'golden' more than once"),
    Spoiling(
        "tolerance twice",
        text('"tolerance": 0.0001', '"tolerance": 1, "tolerance": 0.0001'),
        "has the key 'tolerance' more than once",
    ),
    Spoiling("std Infinity", field("preprocessing/std", [np.inf]), "Infinity is not JSON"),
    Spoiling("std 1e999", text("0.325", "1e999"), r"preprocessing\.std\[0\] is inf, expected a finite number"),
    Spoiling("std 0", field("preprocessing/std", [0.0]), r"preprocessing\.std is \[0\.0\], expected positive"),
    Spoiling("std negative", field("preprocessing/std", [-0.3]), r"preprocessing\.std is \[-0\.3\], expected positive"),
    Spoiling("std below float32", field("preprocessing/std", [1e-60]), r"preprocessing\.std is \[1e-60\], expected"),
    Spoiling("std above all pixels", field("preprocessing/std", [1e7]), r"preprocessing\.std is .*expected positive"),
    Spoiling(
        "mean above all pixels", field("preprocessing/mean", [1e7]), r"preprocessing\.mean is .*values up to 1e\+06"
    ),
    Spoiling(
        "mean of 400 digits", field("preprocessing/mean", [10**400]), "is a number of more than 77 digits, expected"
    ),
    Spoiling("class_count 0", field("class_count", 0), "class_count is 0, expected 1 to"),
    Spoiling("class_count 1e12", field("class_count", 10**12), r"class_count is 1e\+12, expected 1 to"),
    Spoiling("max_batch_size 0", field("max_batch_size", 0), "max_batch_size is 0, expected 1 to 65536"),
    Spoiling("max_batch_size 1e9", field("max_batch_size", 10**9), r"max_batch_size is 1e\+09, expected 1 to 65536"),
    Spoiling("parity of 2", field("parity/batches/1", 2), r"parity\.batches\.1 is 2, expected 0 to 1"),
    Spoiling("version 0", field("version", 0), r"version is 0, expected 1 to 1e\+18"),
    Spoiling(
        "a model of another folder", field("model", "../lenet5"), r"model is '\.\./lenet5', which is no model name"
    ),
    Spoiling("8 MiB and a byte", lambda folder: grow(folder, 8 * MIB + 1), "has more than 8 MiB, the limit"),
    Spoiling("100 MiB", lambda folder: grow(folder, 100 * MIB), "has more than 8 MiB, the limit"),
    Spoiling("digits without end", text('"opset": 18', '"opset": ' + "9" * 5000), r"is not JSON: .*4300"),
    Spoiling("nested without end", content(b"[" * 200_000), "is not JSON: .*nested too deeply"),
    Spoiling("a list", content(b"[]"), "holds a list, expected a JSON object"),
    Spoiling("nothing", content(b""), "is not JSON"),
    Spoiling("UTF-16", lambda folder: recode(folder, "utf-16"), "cannot be read: 'utf-8' codec can't decode byte 0xff"),
    Spoiling("half a character", field("architecture", "\ud800"), "architecture holds .* lone surrogates"),
    Spoiling("a folder", replaced("folder"), "manifest.json is not a file"),
    Spoiling("a pipe", replaced("pipe"), "manifest.json is not a file"),
    Spoiling("a link to nothing", replaced("link"), "manifest.json cannot be read: No such file or directory"),
    Spoiling("schema 3", field("schema", 3), "has schema 3, this server reads 1 and 2"),
    Spoiling("schema as text", field("schema", "2"), "has schema 2, this server reads 1 and 2"),
    Spoiling("schema as float", field("schema", 2.0), r"has schema 2\.0, this server reads 1 and 2"),
    Spoiling("no schema", field("schema", GONE), "has schema None, this server reads 1 and 2"),
    Spoiling(
        "a file above", field("onnx/file", "../1/model.onnx"), "names the file '../1/model.onnx', expected a file name"
    ),
    Spoiling("a file by its path", field("labels", "/etc/hosts"), "names the file '(/etc/)?hosts', expected"),
    Spoiling("a hidden file", field("labels", ".labels"), "names the file '.labels', expected a file name"),
    Spoiling("itself", field("labels", "manifest.json"), "names the file 'manifest.json', expected a file name"),
    Spoiling("no digest of the labels", field("files/labels.txt", GONE), "has no digest for labels.txt"),
    Spoiling("no digest of the model", field("files/model.onnx", GONE), "has no digest for model.onnx"),
    Spoiling("no digest of the image", field("files/golden.png", GONE), "has no digest for golden.png"),
    Spoiling("half a digest", field("files/model.onnx/sha256", "ab"), r"model\.onnx\.sha256 is 'ab', expected 64 hexa"),
    Spoiling("a size below 0", field("files/model.onnx/bytes", -1), r"model\.onnx\.bytes is -1, expected 0 to"),
    Spoiling("another input", field("input/name", "pixels"), "the input 'image', the manifest says 'pixels'"),
    Spoiling(
        "another output", field("output/name", "logits"), "the output 'probabilities', the manifest says 'logits'"
    ),
    Spoiling("another shape of the output", field("output/shape", [11]), r"output\.shape is \[11\], expected \[10\]"),
    Spoiling("another input type", field("input/datatype", "FP32"), "is UINT8 .*, the manifest says FP32"),
]

SECOND = [
    Spoiling("log_tolerance 1", field("golden/log_tolerance", 1), r"log_tolerance is 1, .* at most 0\.001, .* fp32"),
    Spoiling(
        "log_tolerance null", field("golden/log_tolerance", None), r"golden\.log_tolerance is None, expected float"
    ),
    Spoiling("no log_tolerance", field("golden/log_tolerance", GONE), r"field golden\.log_tolerance is missing"),
    Spoiling("an unknown field", field("signature", ""), r"there is no field 'signature'; known are activation, "),
    Spoiling(
        "an unknown field inside", field("golden/limit", 1), r"there is no field golden\.'limit'; known are images, "
    ),
    Spoiling("values inside", field("golden/inline", ""), r"there is no field golden\.'inline'"),
    Spoiling(
        "probabilities in the manifest", field("golden/probabilities", [0.1] * 10), "probabilities is .*expected str"
    ),
    Spoiling("no probabilities", field("golden/probabilities", None), "golden.probabilities has 0 values, expected 10"),
    Spoiling("no image", field("golden/images", []), "golden.images names 0 images"),
    Spoiling("an image twice", field("golden/images", ["golden.png"] * 2), "names 2 images, 1 of them different"),
    Spoiling("33 images", more_images(33), "golden.images names 33 images"),
    Spoiling("no digest of the probabilities", field("files/golden.bin", GONE), "has no digest for golden.bin"),
    Spoiling(
        "probabilities of one class less",
        file("golden.bin", lambda data: data[4:]),
        "golden.bin.bytes is 396, expected 400",
    ),
    Spoiling("a probability that is no number", rows(np.nan), "golden.bin holds values that are not finite"),
    Spoiling("a probability above 1", rows(3.0), "golden.bin holds values from .* to 3, expected probabilities"),
    Spoiling("a probability below 0", rows(-0.5), "golden.bin holds values from -0.5 to"),
    Spoiling("a sum of more than 1", rows(0.5), "golden.bin: the probabilities of an image sum to 1.49"),
    Spoiling("scale 0", field("preprocessing/scale", 0), r"preprocessing\.scale is \[0\.0\], expected positive values"),
    Spoiling(
        "an origin without a digest",
        field("origin", {"model": "lenet5", "version": 1, "manifest_sha256": ""}),
        "origin.manifest_sha256 is '', expected 64",
    ),
]


def grow(folder: Path, size: int) -> None:
    with (folder / "manifest.json").open("r+b") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(b" " * (size - stream.tell()))


def recode(folder: Path, encoding: str) -> None:
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_text().encode(encoding))
