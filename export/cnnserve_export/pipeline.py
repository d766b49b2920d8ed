"""One export: from a network in memory to a published version."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cnnserve.repository.manifest import Manifest, OnnxInfo, Preprocessing
from cnnserve_export import companions, convert, labels, precision, proof, publish, verify
from cnnserve_export import contract as contracts
from cnnserve_export.contract import DEFAULT_MAX_BATCH_SIZE, DEFAULT_OPSET, Contract, InputForm
from cnnserve_export.golden import GoldenImages
from cnnserve_export.outputs import LOGITS, Output
from cnnserve_export.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and where to publish it.

    `network` takes normalised images (N, C, H, W) and returns what `returned` says. `weights` is the
    manifest's entry about the origin of the weights, `golden_images` are the golden images by file name. If `lowering`
    is None, the fp32 file is published.
    """

    network: nn.Module
    architecture: str
    class_count: int
    preprocessing: Preprocessing
    weights: dict[str, str]
    golden_images: GoldenImages
    repository: Path
    name: str
    version: int | None = None
    labels: tuple[str, ...] | None = None
    input_form: InputForm = "uint8"
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    opset: int = DEFAULT_OPSET
    returned: Output = LOGITS
    lowering: precision.Lowering | None = None
    signer: publish.Signs | None = None


def run(job: Export, progress: Progress) -> Path:
    """Converts and verifies the network, publishes it and returns the folder of the version.

    Raises `ExportError`, or `ModelLoadFailed` if ONNX Runtime cannot load the file. Nothing is left in the repository
    then.
    """
    contract = contracts.contract(job.preprocessing, job.input_form, job.class_count, job.returned)
    target = publish.plan(job.repository, job.name, job.version)
    # `commit` checks it again, but users should not have to wait for this error.
    publish.check_compatible(target, contract, job.max_batch_size)
    with publish.staging(target) as folder:
        info = _convert(job, contract, folder, progress)
        evidence = _verify(job, contract, folder, progress)
        if job.lowering is not None:
            evidence = precision.lower(
                folder / convert.MODEL_FILE,
                job.lowering,
                contract,
                evidence,
                golden_images=job.golden_images,
                labels=job.labels,
                max_batch_size=job.max_batch_size,
                progress=progress,
            )
            info = dataclasses.replace(info, precision=job.lowering.precision)
        with progress.stage("publish") as stage:
            companions.write(folder, job.golden_images, evidence.probabilities, job.labels)
            manifest = _manifest(job, target, contract, info, evidence)
            doubt = proof.served(folder, manifest)
            published = publish.commit(folder, manifest, target, job.signer)
            stage.finding = f"{target.model} version {published.name}{doubt}"
    return published


def parameter_count(network: nn.Module) -> int:
    """Returns the number of trained values; buffers such as running means do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def _convert(job: Export, contract: Contract, folder: Path, progress: Progress) -> OnnxInfo:
    with progress.stage("convert") as stage:
        path = folder / convert.MODEL_FILE
        info = convert.to_onnx(job.network, contract, path, job.opset)
        shape = " x ".join(map(str, contract.input.shape))
        stage.finding = (
            f"opset {info.opset}, IR {info.ir_version}, {path.stat().st_size / 1e6:.1f} MB, "
            f"input {contract.input.name!r} batch x {shape} {contract.input.datatype}"
        )
        return info


def _verify(job: Export, contract: Contract, folder: Path, progress: Progress) -> verify.Evidence:
    with progress.stage("verify") as stage:
        evidence = verify.verify(
            folder / convert.MODEL_FILE,
            job.network,
            contract,
            golden_images=job.golden_images,
            max_batch_size=job.max_batch_size,
            report=stage.advance,
        )
        measured = ", ".join(f"{value:.1e} at batch {size}" for size, value in evidence.parity.batches.items())
        stage.finding = (
            f"largest difference of a probability from PyTorch: {measured} (tolerance {evidence.parity.tolerance:.0e})"
        )
        stage.finding += evidence.doubt
        stage.finding += proof.normalisation_doubt(contract.preprocessing, contract.input, folder / convert.MODEL_FILE)
        return evidence


def _manifest(
    job: Export, target: publish.Target, contract: Contract, info: OnnxInfo, evidence: verify.Evidence
) -> Manifest:
    return Manifest(
        model=target.model,
        version=target.version,
        architecture=job.architecture,
        parameters=parameter_count(job.network),
        onnx=info,
        input=contract.input,
        output=contract.output,
        activation=contract.returned.activation,
        class_count=contract.class_count,
        labels=None if job.labels is None else labels.LABELS_FILE,
        max_batch_size=job.max_batch_size,
        preprocessing=contract.preprocessing,
        golden=evidence.golden,
        parity=evidence.parity,
        agreement=evidence.agreement,
        weights=job.weights,
        files={},
        producer=companions.producer(torch=torch.__version__),
        activation_by="network" if contract.returned.by_network else "export",
    )
