"""Runs the commands `cnnserve export`, `import`, `train-lenet`, `copy`, `upgrade` and `sign`.

Progress goes to stderr, the path of the published folder or of the signature to stdout. The exit status is 0 after
success, 1 after an error (one message; nothing was published), 2 after a wrong flag and 130 after an interruption.
torch is imported only if a command needs it.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cnnserve import extras
from cnnserve_export import flags

if TYPE_CHECKING:
    from torch import nn

    from cnnserve.repository.manifest import Preprocessing
    from cnnserve_export.architectures import Architecture
    from cnnserve_export.behaviour import Behaviour
    from cnnserve_export.golden import GoldenImages
    from cnnserve_export.previous import Settled
    from cnnserve_export.progress import Progress
    from cnnserve_export.signing import Signer


def export(argv: list[str]) -> int:
    """Runs `cnnserve export` with the arguments `argv` and returns the exit status."""
    arguments = flags.export_parser().parse_args(argv)
    return _guarded(_export, arguments)


def import_onnx(argv: list[str]) -> int:
    """Runs `cnnserve import` with the arguments `argv` and returns the exit status."""
    arguments = flags.import_parser().parse_args(argv)
    return _guarded(_import, arguments)


def train_lenet(argv: list[str]) -> int:
    """Runs `cnnserve train-lenet` with the arguments `argv` and returns the exit status."""
    arguments = flags.train_parser().parse_args(argv)
    return _guarded(_train, arguments)


def copy(argv: list[str]) -> int:
    """Runs `cnnserve copy` with these arguments; returns the exit status. Versions of schema 1 need ONNX Runtime."""
    return _guarded(_copy, flags.copy_parser().parse_args(argv))


def upgrade(argv: list[str]) -> int:
    """Runs `cnnserve upgrade` with these arguments; returns the exit status. Needs ONNX Runtime."""
    return _guarded(_upgrade, flags.upgrade_parser().parse_args(argv))


def sign(argv: list[str]) -> int:
    """Runs `cnnserve sign` with these arguments; returns the exit status."""
    return _guarded(_sign, flags.sign_parser().parse_args(argv))


def _sign(arguments: argparse.Namespace) -> Path:
    from cnnserve_export import signing

    signer = signing.Signer(arguments.key, arguments.certificate)
    return _as_given(signing.sign(arguments.path, signer), arguments.path)


def _signer(arguments: argparse.Namespace) -> "Signer | None":
    """Returns what signs the published version, if a key was given."""
    from cnnserve_export.errors import ExportError

    if arguments.sign_key is None:
        if arguments.sign_certificate is not None:
            raise ExportError("--sign-certificate needs the key of the certificate; add --sign-key KEY")
        return None
    try:
        from cnnserve_export import signing
    except ModuleNotFoundError as error:
        raise ExportError(
            f"--sign-key needs {error.name}, which is not installed: {extras.install('signing')}"
        ) from error
    return signing.Signer(arguments.sign_key, arguments.sign_certificate)


def _copy(arguments: argparse.Namespace) -> Path:
    from cnnserve_export import copying

    return _as_given(copying.copy(arguments.path, arguments.to, _signer(arguments)), arguments.to)


def _upgrade(arguments: argparse.Namespace) -> Path:
    from cnnserve_export import copying

    return _as_given(copying.upgrade(arguments.path, _signer(arguments)), arguments.path)


def _as_given(folder: Path, given: Path) -> Path:
    return folder if given.is_absolute() else Path(os.path.relpath(folder))


def _guarded(command: Callable[[argparse.Namespace], Path], arguments: argparse.Namespace) -> int:
    from cnnserve.errors import ServingError
    from cnnserve_export.errors import ExportError

    # Orchestrators stop a process with SIGTERM. As after Ctrl-C, unfinished files are then removed.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # What the user's code prints must not mix with the one line that scripts read from stdout.
        with contextlib.redirect_stdout(sys.stderr):
            folder = command(arguments)
        print(folder)
    except (ExportError, ServingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _export(arguments: argparse.Namespace) -> Path:
    from cnnserve_export import golden_choice, networks, pipeline, precision, preparation, previous, weights
    from cnnserve_export.progress import Progress

    signer = _signer(arguments)
    _limit_threads()
    stated = _stated(arguments)
    name = arguments.name or networks.short_name(arguments.architecture)
    earlier = previous.newest(arguments.repository, name, arguments.architecture)
    architecture = _architecture(arguments, stated or (earlier.preprocessing if earlier else None))
    lowering = precision.request(
        arguments.precision, arguments.calibration, arguments.evaluation, arguments.min_agreement
    )
    golden_images = golden_choice.from_path(arguments.golden) if arguments.golden else architecture.golden()
    progress = Progress(sys.stderr)
    wanted = arguments.num_classes or architecture.class_count
    network = _build(architecture, wanted, progress)
    with progress.stage("weights") as stage:
        loaded = weights.load(network, architecture, arguments.weights, stage, arguments.weights_key)
    account = weights.transform_input(network, loaded.account) if arguments.transform_input else loaded.account
    # Flags win over the file of --preprocessing, this file over what published weights bring, and these over the newest
    # version of the model.
    settled = previous.settle(
        earlier,
        brought=stated or (loaded.preprocessing if loaded.brought else None),
        needs_labels=not arguments.labels and loaded.labels is None,
        activation=arguments.activation,
    )
    preprocessing = preparation.changed(flags.given(arguments), settled.preprocessing or loaded.preprocessing)
    behaviour = _check(network, preprocessing, settled, golden_images, progress)
    networks.check_class_count(behaviour.class_count, wanted)
    # Without --num-classes the factory got no number and may not take one, so the error must not propose the flag.
    fix = "correct the file" if networks.is_reference(architecture.name) and arguments.num_classes is None else ""
    names = _labels(arguments, behaviour.class_count, fix) if arguments.labels else loaded.labels or settled.labels
    job = pipeline.Export(
        network=network,
        architecture=architecture.name,
        class_count=behaviour.class_count,
        preprocessing=preprocessing,
        weights=account,
        golden_images=golden_images,
        repository=arguments.repository,
        name=name,
        version=arguments.version,
        labels=names,
        input_form=arguments.input,
        max_batch_size=arguments.max_batch_size,
        opset=arguments.opset,
        returned=behaviour.returned,
        lowering=lowering,
        signer=signer,
    )
    return pipeline.run(job, progress)


def _labels(arguments: argparse.Namespace, class_count: int, fix: str) -> tuple[str, ...]:
    from cnnserve_export import labels

    return labels.read(arguments.labels, class_count, fix, allow_empty=arguments.allow_empty_labels)


def _stated(arguments: argparse.Namespace) -> "Preprocessing | None":
    """Returns the preprocessing in the file of --preprocessing, if there is one."""
    from cnnserve_export import configs

    return configs.read(arguments.preprocessing) if arguments.preprocessing else None


def _architecture(arguments: argparse.Namespace, stated: "Preprocessing | None") -> "Architecture":
    """Returns a built-in architecture, or the user's own network as one."""
    from cnnserve_export import networks, preparation
    from cnnserve_export.architectures import ARCHITECTURES
    from cnnserve_export.errors import ExportError

    name = arguments.architecture
    if networks.is_reference(name):
        preprocessing = preparation.of_network(flags.given(arguments), stated)
        return networks.architecture(name, preprocessing, arguments.num_classes)
    if name not in ARCHITECTURES:
        raise ExportError(
            f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}, "
            "or name your own network as package.module:factory"
        )
    return ARCHITECTURES[name]


def _limit_threads() -> None:
    import torch

    from cnnserve.process.cpu import cpu_budget

    # torch counts the cores of the host, but a container may be limited to fewer.
    torch.set_num_threads(cpu_budget())


def _build(architecture: "Architecture", class_count: int, progress: "Progress") -> "nn.Module":
    from cnnserve_export import checkpoints, pipeline

    with progress.stage("build") as stage:
        network = checkpoints.build(architecture, class_count)
        count = pipeline.parameter_count(network)
        classes = f", {class_count} classes" if class_count else ""
        stage.finding = f"{architecture.name} ({architecture.paper}), {count:,} parameters{classes}"
        return network


def _check(
    network: "nn.Module",
    preprocessing: "Preprocessing",
    settled: "Settled",
    golden_images: "GoldenImages",
    progress: "Progress",
) -> "Behaviour":
    """Returns the behaviour of the network on images with this preprocessing."""
    from cnnserve_export import behaviour, contract, proof

    with progress.stage("check") as stage:
        spec, tensor = contract.image_input(preprocessing, "float32")
        rows = proof.rows(spec, tensor, golden_images, behaviour.ROWS)
        found = behaviour.examine(network, rows, settled.activation)
        stage.finding = f"{found.class_count} classes, returns {found.returned.described()}{settled.told}"
        return found


def _import(arguments: argparse.Namespace) -> Path:
    from cnnserve_export import golden_choice, importing
    from cnnserve_export.progress import Progress

    job = importing.Import(
        file=arguments.file,
        given=flags.given(arguments),
        stated=_stated(arguments),
        golden_images=golden_choice.from_path(arguments.golden) if arguments.golden else golden_choice.photographs(),
        repository=arguments.repository,
        name=arguments.name or arguments.file.stem,
        version=arguments.version,
        labels=arguments.labels,
        allow_empty_labels=arguments.allow_empty_labels,
        activation=arguments.activation,
        output=arguments.output,
        evaluation=arguments.evaluation,
        max_batch_size=arguments.max_batch_size,
        signer=_signer(arguments),
    )
    return importing.run(job, Progress(sys.stderr))


def _train(arguments: argparse.Namespace) -> Path:
    _limit_threads()
    import torch

    from cnnserve_export import pipeline, train
    from cnnserve_export.architectures import ARCHITECTURES
    from cnnserve_export.progress import Progress

    progress = Progress(sys.stderr)
    with progress.stage("train") as stage:
        epochs = arguments.epochs
        trained = train.train_lenet5(
            epochs, arguments.seed, lambda epoch, loss: stage.advance(epoch, epochs, f"epochs, loss {loss:.3f}")
        )
        stage.finding = f"{epochs} epochs, accuracy {trained.accuracy:.2%} on the held-out digits"
    if arguments.save_weights:
        # If torch.save gets a path that cannot be written, it raises a RuntimeError with a text from its C++ code.
        with arguments.save_weights.open("wb") as file:
            torch.save(trained.network.state_dict(), file)
    architecture = ARCHITECTURES["lenet5"]
    job = pipeline.Export(
        network=trained.network,
        architecture=architecture.name,
        class_count=len(train.LABELS),
        preprocessing=architecture.preprocessing,
        weights=trained.origin,
        golden_images=architecture.golden(),
        repository=arguments.repository,
        name=arguments.name or architecture.name,
        version=arguments.version,
        labels=train.LABELS,
    )
    return pipeline.run(job, progress)
