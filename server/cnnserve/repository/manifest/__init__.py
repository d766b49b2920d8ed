"""`manifest.json` of a version: preprocessing, digests, parity, golden images. The exporter writes, the server reads.

`cnnserve_export.publish` writes the file in schema 2. The server reads schema 1 and 2, compares the digest of every
file that the manifest names, and repeats the golden images before the version becomes READY.
"""

from cnnserve.repository.folders import MANIFEST_FILE
from cnnserve.repository.manifest.checks import check_contract, check_own_place, check_place
from cnnserve.repository.manifest.digests import altered_files, digest, read_again, verify, verify_files
from cnnserve.repository.manifest.limits import (
    LOG_TOLERANCES,
    MAX_GOLDEN_IMAGES,
    TOLERANCES,
)
from cnnserve.repository.manifest.preprocessing import INTERPOLATIONS, check_preprocessing
from cnnserve.repository.manifest.probabilities import PROBABILITIES_FILE, golden_bytes, golden_probabilities
from cnnserve.repository.manifest.reading import any_manifest, parse, parse_preprocessing, read, read_from
from cnnserve.repository.manifest.schema import (
    SCHEMA,
    Agreement,
    Calibration,
    FileDigest,
    Golden,
    ImageSet,
    Interpolation,
    Library,
    Manifest,
    OnnxInfo,
    Origin,
    Pad,
    Parity,
    Preprocessing,
    Resize,
    ResizeMode,
    TensorInfo,
    document,
    to_json,
)

__all__ = [
    "INTERPOLATIONS",
    "LOG_TOLERANCES",
    "MANIFEST_FILE",
    "MAX_GOLDEN_IMAGES",
    "PROBABILITIES_FILE",
    "SCHEMA",
    "TOLERANCES",
    "Agreement",
    "Calibration",
    "FileDigest",
    "Golden",
    "ImageSet",
    "Interpolation",
    "Library",
    "Manifest",
    "OnnxInfo",
    "Origin",
    "Pad",
    "Parity",
    "Preprocessing",
    "Resize",
    "ResizeMode",
    "TensorInfo",
    "altered_files",
    "any_manifest",
    "check_contract",
    "check_own_place",
    "check_place",
    "check_preprocessing",
    "digest",
    "document",
    "golden_bytes",
    "golden_probabilities",
    "parse",
    "parse_preprocessing",
    "read",
    "read_again",
    "read_from",
    "to_json",
    "verify",
    "verify_files",
]
