"""Turns what `cnnserve show` found into aligned text. Prints nothing.

It works on the same documents that `--json` prints, so the text and the JSON always agree.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

# One version, with the keys that README.md lists.
Entry = dict[str, Any]

_BY_255 = 1 / 255
_LABELS_SHOWN = 10


def version(entry: Entry) -> str:
    """Returns the text of one version: names on the left, one or more lines for each name on the right."""
    rows = [("state", _state(entry))]
    manifest = entry["manifest"]
    if manifest:
        rows += [(name, list(lines)) for name, lines in _facts(entry, manifest)]
    if entry["warnings"]:
        rows.append(("warnings", entry["warnings"]))
    if entry["other_versions"]:
        rows.append(("other versions", [f"{', '.join(map(str, entry['other_versions']))}; show one with --version N"]))
    cells = [("" if line else name, text) for name, lines in rows for line, text in enumerate(lines)]
    title = f"{entry['model']} version {entry['version']}, {entry['folder']}"
    return printable(title) + "\n\n" + aligned(cells)


def table(entries: Sequence[Entry]) -> str:
    """Returns a table with one line per version."""
    header = ("MODEL", "VERSION", "PARAMS", "PRECISION", "INPUT", "CLASSES", "COMPARED", "STATE")
    return aligned([header, *map(_row, entries)], right=(1, 2, 5, 6))


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns `rows` as lines with columns two spaces apart; the columns in `right` are aligned to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(row))
        for row in (zip(line, widths, strict=True) for line in cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def printable(text: str) -> str:
    """Returns `text` with all characters escaped that could control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _state(entry: Entry) -> list[str]:
    if entry["state"] == "intact":
        return [f"intact: {len(entry['manifest']['files'])} files match the digests in the manifest"]
    if entry["state"] == "no manifest":
        return ["no manifest: nothing is known about this version, and nothing was compared"]
    return [f"{entry['state']}: {problem}" for problem in entry["problems"].values()]


def _row(entry: Entry) -> tuple[str, ...]:
    start = (entry["model"], str(entry["version"]))
    manifest = entry["manifest"]
    if not manifest:
        return (*start, *["-"] * 5, entry["state"])
    agreement = manifest.get("agreement")
    # If a version has an agreement, its parity belongs to another file.
    batches = () if agreement else manifest["parity"]["batches"].values()
    return (
        *start,
        _short(manifest["parameters"]),
        manifest["onnx"]["precision"],
        f"{'x'.join(map(str, manifest['input']['shape']))} {manifest['input']['datatype']}",
        str(manifest["class_count"]),
        f"{agreement['top1']:.2%}" if agreement else f"{max(batches):.1e}" if batches else "-",
        entry["state"] + (", contract 1" if manifest["schema"] == 1 else ""),
    )


def _short(number: int) -> str:
    """Returns a number in at most five characters, such as 61.7k or 11.7M."""
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{unit}"
    return str(number)


def _facts(entry: Entry, manifest: dict[str, Any]) -> Iterator[tuple[str, Iterator[str] | list[str]]]:
    onnx = manifest["onnx"]
    yield "contract", [_contract(manifest["schema"])]
    if origin := manifest["origin"]:
        yield "copy of", [f"{origin['model']} version {origin['version']}, manifest {origin['manifest_sha256']}"]
    yield "architecture", [f"{manifest['architecture']}, {manifest['parameters']:,} parameters"]
    yield "precision", [f"{onnx['precision']}, opset {onnx['opset']}, IR version {onnx['ir_version']}"]
    yield "input", [f"{_tensor(manifest['input'])}, batches of 1 to {manifest['max_batch_size']}"]
    activation = manifest["activation"]
    yield "output", [_tensor(manifest["output"]) + (f", {activation}" if activation != "none" else "")]
    yield "preprocessing", _preprocessing(manifest["preprocessing"])
    yield "labels", [_labels(entry["labels"], manifest)]
    yield "weights", _weights(manifest["weights"])
    yield "golden images", _golden(manifest["golden"], entry["golden"])
    yield "parity", _parity(manifest["parity"], lowered=bool(manifest.get("agreement")))
    if manifest.get("agreement"):
        yield "agreement", _agreement(manifest["agreement"])
    yield "files", _files(entry, manifest)
    yield "made by", [", ".join(f"{name} {version}" for name, version in manifest["producer"].items()) or "unknown"]


def _contract(schema: int) -> str:
    if schema == 1:
        return "1: one golden image, logarithms of probabilities are not compared; see cnnserve upgrade"
    return str(schema)


def _preprocessing(spec: dict[str, Any]) -> Iterator[str]:
    yield f"color: {spec['color']}" + ("" if spec["exif_orientation"] else ", EXIF orientation ignored")
    if resize := spec["resize"]:
        how = "antialiased" if resize["antialias"] else "by OpenCV"
        yield f"resized: {_resized(resize['mode'], resize['size'])}, {resize['interpolation']}, {how}"
    if spec["crop"]:
        rounded = "" if spec["crop_rounding"] == "even" else ", margins rounded down"
        yield f"cropped: {_by(spec['crop'])}, the centre{rounded}"
    if pad := spec["pad"]:
        place = "on all sides" if pad["align"] == "center" else "on the right and below"
        yield f"padded: {place}, colour {_values(pad['color'])}"
    if spec["scale"] != _BY_255:
        yield f"scaled: by {spec['scale']:.6g}"
    by = {"graph": "in the graph", "host": "by the server", "none": "not applied by the server"}[spec["normalize"]]
    yield f"normalised: mean {_values(spec['mean'])}, standard deviation {_values(spec['std'])}, {by}"


def _resized(mode: str, size: list[int]) -> str:
    if mode == "fit":
        return f"to height {size[0]}, width by the ratio" + (f", at most {size[1]}" if len(size) > 1 else "")
    if mode == "shorter":
        return f"shorter side to {size[0]}" if len(size) == 1 else f"to cover {_by(size)}"
    return f"to fit into {_by(size)}" if mode == "letterbox" else _by(size)


def _labels(names: list[str] | None, manifest: dict[str, Any]) -> str:
    count = manifest["class_count"]
    if names is None:
        return f"{manifest['labels']} cannot be read" if manifest["labels"] else f"none, {count} classes"
    more = f" and {len(names) - _LABELS_SHOWN} more" if len(names) > _LABELS_SHOWN else ""
    return f"{manifest['labels']}, {len(names)}: {', '.join(names[:_LABELS_SHOWN])}{more}"


def _golden(golden: dict[str, Any], answers: list[dict[str, Any]] | None) -> Iterator[str]:
    if answers is None:
        yield f"{golden['probabilities']} cannot be read"
    for answer in answers or ():
        label = f"class {answer['class']}" if answer["label"] is None else repr(answer["label"])
        yield f"{answer['image']}: {label} with probability {answer['probability']:.4f}"
    logarithms = f", of its logarithm {golden['log_tolerance']:g}" if golden["log_tolerance"] else ""
    yield f"tolerance of a probability {golden['tolerance']:g}{logarithms}"


def _weights(origin: dict[str, str]) -> Iterator[str]:
    rest = dict(origin)
    yield rest.pop("source", "of unknown source")
    yield from (f"{name.replace('_', ' ')}: {value}" for name, value in rest.items())


def _parity(parity: dict[str, Any], *, lowered: bool) -> list[str]:
    # If a version has an agreement, its parity belongs to the fp32 file from which it was made.
    of = "a probability of the fp32 file" if lowered else "a probability"
    measured = ", ".join(f"{value:.1e} at batch {size}" for size, value in parity["batches"].items())
    reference = parity.get("reference", "PyTorch")
    return [
        f"largest difference of {of} from {'PyTorch' if reference == 'PyTorch' else f'the {reference}'}",
        f"{measured}; tolerance {parity['tolerance']:.0e}, on {parity['provider']}",
    ]


def _agreement(agreement: dict[str, Any]) -> Iterator[str]:
    images = agreement["images"]
    yield f"with fp32 on {images['count']} images ({images['name']}, SHA-256 {images['sha256']})"
    yield f"{agreement['top1']:.2%} have the same most probable class, at least {agreement['needed']:.2%} required"
    yield f"largest difference of a probability: {agreement['largest_difference']:.4f}"
    if agreement["accuracy"] is not None and agreement["fp32_accuracy"] is not None:
        accuracies = f"accuracy {agreement['accuracy']:.2%}, in fp32 {agreement['fp32_accuracy']:.2%}"
        yield f"{accuracies}, on {agreement['labelled']} labelled images"
    if calibration := agreement["calibration"]:
        images = calibration["images"]
        weights = f"{calibration['weight_bits']}-bit weights"
        yield f"calibrated on {images['count']} images ({images['name']}, SHA-256 {images['sha256']}), {weights}"
        if agreement["seen_in_calibration"]:
            yield f"{agreement['seen_in_calibration']} of the compared images were also used for calibration"


def _files(entry: Entry, manifest: dict[str, Any]) -> list[str]:
    files = manifest["files"].items()
    rows = [(name, f"{file['bytes']:,}", file["sha256"], _file_state(entry, name)) for name, file in files]
    return aligned([("", "BYTES", "SHA-256", ""), *rows], right=(1,)).splitlines()


def _file_state(entry: Entry, name: str) -> str:
    return "ALTERED" if name in entry["problems"] else "intact"


def _tensor(tensor: dict[str, Any]) -> str:
    layout = f" {tensor['layout']}" if tensor["layout"] else ""
    return f"{tensor['name']}, {_by(tensor['shape'])} {tensor['datatype']}{layout}"


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _values(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
