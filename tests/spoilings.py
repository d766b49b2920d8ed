"""One table of ways to spoil a published version: what was changed, what finds it, or why nothing can.

Each row starts from a copy of the trained LeNet-5 in a model repository of its own. Whoever has another server to try,
such as one that trusts keys, uses `prepare` and `outcome` with the same rows.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from cnnserve.registry.lifecycle import State
from cnnserve.registry.registry import Registry
from spoiled_manifests import BOTH, SECOND
from spoiled_networks import (
    answered,
    backdoor,
    brightest_of_the_batch,
    exchanged,
    in_memory,
    moved_weights,
    named_weights,
    negated,
    network,
    one_row,
    softmax_twice,
    weights,
    without_softmax,
)
from spoiling import Change, field, file, lenet5
from support import REPOSITORY, rewrite_manifest, until, write_version

# What finds a change: the digests, the checks of the manifest, of its place, of the kinds of files, of files to which
# the graph refers, of labels, of what the ONNX file is, the self-test, a warning, the rule that no unverified version
# follows a verified one; or nothing.
Finder = Literal["digest", "manifest", "place", "kind", "reference", "labels", "load", "self-test", "warning", "rule"]


@dataclass(frozen=True)
class Row:
    """One change of a repository with the model `lenet5`, and what says so.

    `said`: a pattern of the reason or of the warning. `found`: None if nothing can find it without a signature; then
    `said` says why. `before_signing`: whoever signs would sign it, so that no signature finds it either. `version`:
    that which is asked for.
    """

    what: str
    change: Callable[[Path], object]
    found: Finder | None
    said: str
    version: int = 1
    before_signing: bool = False

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Outcome:
    """What a server says of a spoiled version. `reason`: why it is not served; "" if it is."""

    served: bool
    reason: str


def prepare(root: Path, row: Row, sign: Callable[[Path], object] = str) -> None:
    """Writes the model repository of a row. `sign` gets the model's folder when somebody would sign it."""
    folder = lenet5(root).parent
    if row.before_signing:
        row.change(root)
        sign(folder)
    else:
        sign(folder)
        row.change(root)


async def outcome(row: Row, registry: Registry) -> Outcome:
    """Starts a registry on a prepared repository and returns what becomes of the version."""
    await registry.load_all()
    version = registry.entry("lenet5").versions[row.version]
    if row.found == "self-test":
        # On a busy machine, the runs of the last images follow only after READY.
        await until(lambda: version.state is not State.READY)
    return Outcome(version.state is State.READY, version.reason)


def at(change: Change) -> Callable[[Path], object]:
    """Returns the change of version 1 as one of the repository."""
    return lambda root: change(root / "lenet5" / "1")


def altered(what: str, name: str, change: Callable[[bytes], bytes], said: str) -> Row:
    """Returns the row of a file that changed, while its digest did not."""

    def changed(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return Row(what, at(changed), "digest", said)


def instead(name: str, kind: str) -> Row:
    """Returns the row of a file that gave way to something else."""

    def changed(folder: Path) -> None:
        path = folder / name
        outside = folder.parent.parent / ".elsewhere"
        path.rename(outside)
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a folder":
            path.mkdir()
        else:
            path.symlink_to("gone" if kind == "a link to nothing" else outside)

    said = {
        "a pipe": f"{name} is not a file but a pipe",
        "a folder": f"{name} is not a file but a folder",
        "a link to nothing": f"{name} is missing|{name} cannot be read: No such file",
        "a link out": f"{name} leads out of the model's folder",
    }
    return Row(f"{name} is {kind}", at(changed), "kind", said[kind])


def renamed_model(root: Path) -> None:
    folder = root / "lenet5" / "1"
    field("model", "digits")(folder)


def other_model(root: Path) -> None:
    write_version(root / "digit" / "1")
    shutil.move(root / "digit" / "1", root / "lenet5" / "2")


def old_version(root: Path) -> None:
    shutil.copytree(root / "lenet5" / "1", root / "lenet5" / "2")


def unverified_next(root: Path) -> None:
    old_version(root)
    (root / "lenet5" / "2" / "manifest.json").unlink()


def labels(*lines: str) -> Change:
    return file("labels.txt", lambda _: "".join(f"{line}\n" for line in lines).encode())


def other_config(text: str) -> Callable[[Path], object]:
    def changed(root: Path) -> None:
        path = root / "lenet5" / "config.pbtxt"
        path.write_text(path.read_text() + text)

    return changed


def unused_half(folder: Path) -> None:
    half = numpy_helper.from_array(np.ones(1, np.float16), "half")
    network(lambda model: model.graph.initializer.append(half))(folder)
    field("onnx/precision", "fp16")(folder)
    field("golden/tolerance", 0.01)(folder)


def rolled(data: bytes) -> bytes:
    return np.roll(np.frombuffer(data, "<f4").reshape(-1, 10), 1, axis=1).tobytes()


def later(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def unknown(model: onnx.ModelProto) -> None:
    model.graph.node[5].op_type = "Rela"


def stable(root: Path) -> None:
    (root / "lenet5" / "version_labels.json").write_text('{"stable": 1}')


def no_config(root: Path) -> None:
    (root / "lenet5" / "config.pbtxt").unlink()


def other_name(root: Path) -> None:
    path = root / "lenet5" / "config.pbtxt"
    path.write_text(path.read_text().replace('"lenet5"', '"digits"'))


def cropped(folder: Path) -> None:
    field("preprocessing/resize/mode", "shorter")(folder)
    field("preprocessing/crop", [28, 28])(folder)


DIGITS = [*"0123456789"]
SIX = (REPOSITORY / "lenet5" / "1" / "golden-six.png").read_bytes()
ALONE = "self-test: .* alone .*the manifest says"
MODEL_SAID = r"file model\.onnx was altered"
ROWS: list[Row] = [
    # Files that changed, while their digests did not.
    altered("one bit of the network", "model.onnx", lambda d: d[:9000] + bytes([d[9000] ^ 1]) + d[9001:], MODEL_SAID),
    altered(
        "half of the network", "model.onnx", lambda d: d[: len(d) // 2], r"model\.onnx has \d+ bytes, the manifest"
    ),
    altered("the network without its last byte", "model.onnx", lambda d: d[:-1], r"model\.onnx has \d+ bytes"),
    altered("a byte after the network", "model.onnx", lambda d: d + b"\0", r"model\.onnx has \d+ bytes"),
    altered("an empty network", "model.onnx", lambda _: b"", r"model\.onnx is empty"),
    altered("the network as zeros", "model.onnx", lambda d: bytes(len(d)), MODEL_SAID),
    altered("a label", "labels.txt", lambda d: d.replace(b"7", b"1"), r"labels\.txt was altered"),
    altered("labels in another order", "labels.txt", lambda d: bytes(reversed(d)), r"labels\.txt was altered"),
    altered("labels with other line ends", "labels.txt", lambda d: d.replace(b"\n", b"\r\n"), r"labels\.txt has"),
    altered("a golden image", "golden.png", lambda d: d[:-1] + b"x", r"golden\.png was altered"),
    altered("the last golden image", "golden-alpha.png", lambda d: d[:-1] + b"x", r"golden-alpha\.png was altered"),
    altered("a golden probability", "golden.bin", lambda d: d[:-1] + b"\0", r"golden\.bin was altered"),
    altered(
        "golden probabilities of another order", "golden.bin", lambda d: d[40:] + d[:40], r"golden\.bin was altered"
    ),
    *(
        Row(f"no {name}", at(lambda folder, name=name: (folder / name).unlink()), "digest", f"file {name} is missing")  # type: ignore[misc]
        for name in ("model.onnx", "labels.txt", "golden.png", "golden-six.png", "golden.bin")
    ),
    Row(
        "a digit of a digest",
        at(field("files/labels.txt/sha256", "0" * 64)),
        "digest",
        r"labels\.txt was altered: .* expected 000000000000",
    ),
    Row("external data that changed", at(named_weights), "digest", r"file weights\.bin was altered"),
    # Something else in place of a file.
    *(
        instead(name, kind)
        for name in ("model.onnx", "labels.txt", "golden.png", "golden.bin", "manifest.json")
        for kind in ("a pipe", "a folder", "a link to nothing", "a link out")
    ),
    # Files that no digest covers.
    Row("weights in a file of no name", at(moved_weights()), "reference", "'weights.bin', which the manifest does not"),
    Row("weights above the folder", at(moved_weights("../weights.bin")), "reference", "which is not a file beside it"),
    Row("weights in the memory of the server", at(network(in_memory)), "reference", "does not name"),
    Row(
        "a file that nothing names",
        at(lambda folder: (folder / "weights.bin").write_bytes(b"?")),
        "warning",
        r"the manifest does not name weights\.bin, so nothing reads them",
    ),
    # The wrong place.
    Row("another model's version as the next one", other_model, "place", "is that of model digit version 1", 2),
    Row("an old version as the next one", old_version, "place", "is that of model lenet5 version 1", 2),
    Row("a manifest of another model", renamed_model, "place", "is that of model digits version 1"),
    Row("a manifest of another version", at(field("version", 7)), "place", "is that of model lenet5 version 7"),
    # Another network, with the digests remade.
    Row("a network that is none", at(file("model.onnx", lambda _: b"no model")), "load", "it is no ONNX file"),
    Row("a network without a graph", at(network(lambda m: m.ClearField("graph"))), "load", "cannot be loaded"),
    Row("a network of a later time", at(network(later)), "load", "reads up to IR version"),
    Row("an unknown operator", at(network(unknown)), "load", "cannot be loaded: .*Rela"),
    Row("no batches any more", at(network(one_row)), "load", "max_batch_size"),
    Row("all weights scaled", at(weights("network.fc3.weight", lambda w: w * 1.01)), "self-test", ALONE),
    Row("one filter negated", at(weights("network.conv1.weight", negated)), "self-test", ALONE),
    Row("two classes exchanged", at(exchanged), "self-test", ALONE),
    Row("no bias", at(weights("network.fc2.bias", lambda b: b * 0)), "self-test", ALONE),
    Row("an infinite bias", at(weights("network.fc1.bias", lambda b: b + np.inf)), "self-test", "self-test: "),
    Row("another mean in the graph", at(weights("shift", lambda s: s + 0.1)), "self-test", ALONE),
    Row("another std in the graph", at(weights("scale", lambda s: s * 1.1)), "self-test", ALONE),
    Row("no softmax", at(network(without_softmax)), "self-test", "are not probabilities .* the manifest says softmax"),
    Row("a softmax twice", at(network(softmax_twice)), "self-test", ALONE),
    Row("the brightest image of a batch counts", at(network(brightest_of_the_batch)), "self-test", "self-test: "),
    Row("fp16 by a constant that nothing uses", at(unused_half), "manifest", "is fp16, but the graph computes in fp32"),
    # Another preprocessing, and other golden images.
    Row("the nearest pixels", at(field("preprocessing/resize/interpolation", "nearest")), "self-test", ALONE),
    *(
        Row(f"resized in the mode {mode}", at(field("preprocessing/resize/mode", mode)), "self-test", said)
        for mode, said in (("fit", "golden-launch.jpg alone"), ("letterbox", "golden-turned.jpg alone"))
    ),
    Row("cropped", at(cropped), "self-test", "golden-turned.jpg alone"),
    Row("no antialiasing", at(field("preprocessing/resize/antialias", False)), "manifest", "antialias is false"),
    Row("EXIF ignored", at(field("preprocessing/exif_orientation", False)), "self-test", "golden-turned.jpg alone"),
    Row("colour", at(field("preprocessing/color", "RGB")), "manifest", "preprocessing"),
    Row("another size", at(field("preprocessing/resize/size", [30, 30])), "manifest", "gives images of size"),
    Row("probabilities as logits", at(field("activation", "none")), "manifest", "the graph ends in a softmax"),
    Row("a softmax as sigmoids", at(field("activation", "sigmoid")), "manifest", "the graph ends in a softmax"),
    Row("normalised by the server", at(field("preprocessing/normalize", "host")), "warning", "normalises once more"),
    Row("another mean in the manifest", at(field("preprocessing/mean", [0.5])), "warning", "manifest says mean 0.5"),
    Row("another golden image", at(file("golden.png", lambda _: SIX)), "self-test", "golden.png alone"),
    Row("a damaged golden image", at(file("golden.png", lambda data: data[:60])), "self-test", "self-test: "),
    Row("answers of another class", at(file("golden.bin", rolled)), "self-test", ALONE),
    # Labels.
    Row("a label less", at(labels(*DIGITS[:9])), "labels", "there are 9 labels for 10 classes"),
    Row("a label more", at(labels(*DIGITS, "10")), "labels", "there are 11 labels for 10 classes"),
    Row(
        "labels that are no text", at(file("labels.txt", lambda _: b"\xff\n" * 10)), "labels", "cannot be read: .*utf-8"
    ),
    Row("labels that are all empty", at(labels(*[""] * 10)), "warning", "all 10 labels are empty"),
    Row("labels that are all the same", at(labels(*["0"] * 10)), "warning", "all 10 labels are '0'"),
    Row("a label that turns around", at(labels(*DIGITS[:9], "\u202e9")), "warning", "the control character U.202E"),
    # Config.
    Row("a setting that does not exist", other_config("max_batchsize: 3"), "load", "max_batchsize"),
    Row("another model's config", other_name, "load", 'name is "digits", the folder is "lenet5"'),
    # No manifest.
    Row(
        "an unverified version follows", unverified_next, "rule", "it has no manifest.json, but the model has or had", 2
    ),
    # What nothing can find without a signature.
    Row(
        "the only manifest is deleted before the start",
        at(lambda folder: (folder / "manifest.json").unlink()),
        None,
        "nothing says any more that there was one; --require-manifest refuses it",
    ),
    Row("two labels exchanged", at(labels(*"0183456729")), None, "labels have no meaning for the server"),
    Row(
        "two classes exchanged, and the golden probabilities",
        at(answered(exchanged)),
        None,
        "everything that the self-test compares was remade",
    ),
    Row(
        "another mean, and the golden probabilities",
        at(answered(weights("shift", lambda s: s + 0.1))),
        None,
        "everything that the self-test compares was remade",
    ),
    Row("a backdoor", at(network(backdoor)), None, "no image that is compared has the pixels that open it"),
    Row(
        "a backdoor before signing",
        at(network(backdoor)),
        None,
        "who signs, signs the backdoor",
        before_signing=True,
    ),
    Row("another origin", at(field("weights/source", "ImageNet")), None, "the server does not know the origin"),
    Row("a better parity", at(field("parity/batches/1", 0.0)), None, "the server does not know PyTorch's answers"),
    Row(
        "an old version renumbered",
        lambda root: (old_version(root), rewrite_manifest(root / "lenet5" / "2")),
        None,
        "a manifest that says so is as good as any",
        2,
    ),
    Row(
        "another model renamed",
        lambda root: (other_model(root), no_config(root), rewrite_manifest(root / "lenet5" / "2")),
        None,
        "a manifest that says so is as good as any",
        2,
    ),
    Row("no config", no_config, None, "a model needs no config.pbtxt"),
    Row("a label of another version", stable, None, "version_labels.json belongs to no version"),
    Row("a smaller batch", other_config("instance_group { count: 2 }"), None, "config.pbtxt belongs to no version"),
    # Manifests that set their own limits, or that can be understood in two ways.
    *(Row(f"manifest: {one.what}", at(one.change), "manifest", one.said) for one in (*BOTH, *SECOND)),
]
