"""What the self-test demands of a version, and the reasons for which it refuses one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cnnserve.datatypes import Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import ImageOptions, Preprocessor
from cnnserve.model import comparison, selftest
from cnnserve.model.comparison import Tolerance
from cnnserve.model.selftest import SelfTest
from cnnserve.model_config.providers import CPU, Provider, cuda_options
from cnnserve.repository import manifest as manifests
from cnnserve.repository.manifest import Manifest
from cnnserve.runtime.session import Session
from support import png, write_version

CPU_PROVIDER = Provider()


def reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_version(tmp_path / "m" / "1")


def manifest_of(folder: Path) -> Manifest:
    manifest = manifests.read(folder)
    assert manifest is not None
    return manifest


class Drifting:
    """A session whose row `index` in batches of `size` is wrong by `by`."""

    def __init__(self, folder: Path, *, size: int = 3, index: int = -1, by: float = 0.0) -> None:
        self._session = Session(folder / "model.onnx")
        self._size, self._index, self._by = size, index, by
        self.sizes: list[int] = []

    def __call__(self, parts: Sequence[Rows]) -> list[Rows]:
        (rows,) = self._session.run(np.concatenate(parts))
        self.sizes.append(len(rows))
        if len(rows) == self._size:
            rows[self._index, :2] += [self._by, -self._by]
        return [rows]


def prove(folder: Path, run: Drifting, sizes: Sequence[int] = (1, 3), provider: Provider = CPU_PROVIDER) -> SelfTest:
    manifest = manifest_of(folder)
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
    return selftest.run_golden(run, manifest, preprocessor, reader(folder), sizes=sizes, provider=provider)


def test_every_size_is_tried_once_and_told(folder: Path) -> None:
    run = Drifting(folder)
    test = prove(folder, run, sizes=(1, 2, 8))
    # Two variants of the only golden image are run alone, too.
    assert run.sizes == [1, 1, 1, 2, 8]
    assert list(test.batches) == [1, 2, 8]
    assert (test.provider, test.tolerance) == (CPU, 1e-4)
    assert "in batches of 1, 2, 8 (tolerance 1e-04)" in str(test)


@pytest.mark.parametrize("index", [0, -1])
def test_a_row_that_depends_on_its_batch_is_refused(folder: Path, index: int) -> None:
    with pytest.raises(ModelLoadFailed, match=r"in a batch of 3 gives class \d the probability .*, but alone it is"):
        prove(folder, Drifting(folder, index=index, by=2e-4))


def test_rows_that_agree_with_each_other_must_also_be_right(folder: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"alone gives class 0 .*, but the manifest says"):
        prove(folder, Drifting(folder, size=1, by=2e-4))


def test_a_row_that_is_no_number_is_refused(folder: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="not finite"):
        prove(folder, Drifting(folder, by=np.nan))


def test_only_a_provider_of_fewer_bits_gets_more_room(tmp_path: Path) -> None:
    # Its probabilities are 0.02 and more.
    folder = write_version(tmp_path / "m" / "1", golden_image=png(np.full((8, 8), 110, np.uint8)))
    manifest = manifest_of(folder)
    assert comparison.tolerance(manifest, CPU_PROVIDER).probability == 1e-4
    assert comparison.tolerance(manifest, Provider("cuda", 0, cuda_options({"use_tf32": "0"}))).log == 1e-3
    tf32 = Provider("cuda", 0, cuda_options({}))
    assert comparison.tolerance(manifest, tf32) == Tolerance(1e-2, 0.25, 2.0**-14)
    assert prove(folder, Drifting(folder, by=1.1e-4), provider=tf32).batches[3] == pytest.approx(1.1e-4, rel=1e-3)


def test_the_sizes_are_the_buckets_or_one_and_three() -> None:
    assert selftest.batch_sizes((), 8) == [1, 3]
    assert selftest.batch_sizes((), 2) == [1, 2]
    assert selftest.batch_sizes((4, 8), 8) == [4, 8]


def test_several_instances_count_by_their_worst() -> None:
    one = SelfTest(1e-6, 2e-6, 1e-4, {1: 1e-6, 3: 2e-6}, "A")
    two = SelfTest(3e-6, 3e-6, 1e-2, {1: 3e-6}, "B")
    assert selftest.worst([one, two]) == SelfTest(3e-6, 3e-6, 1e-2, {1: 3e-6, 3: 2e-6}, "A, B")


def test_fast_preprocessing_tells_what_it_changes(tmp_path: Path) -> None:
    """The golden image is tested with `exact`; the text also says how `fast` changes its result, and larger JPEGs."""
    photograph = np.random.default_rng(0).integers(0, 256, (100, 160), np.uint8)
    folder = write_version(tmp_path / "n" / "1", golden_image=png(photograph))
    manifest = manifest_of(folder)
    preprocessor = Preprocessor(manifest.preprocessing, manifest.input, ImageOptions(fast=True))
    test = selftest.run_golden(
        Drifting(folder), manifest, preprocessor, reader(folder), sizes=(1, 3), provider=CPU_PROVIDER
    )
    assert test.golden_difference < 1e-6
    assert test.fast_difference is not None
    assert 0 < test.fast_difference < 0.2
    assert f"; fast preprocessing changes them by at most {test.fast_difference:.1e}" in str(test)
    assert "fast" not in str(prove(folder, Drifting(folder)))
    assert selftest.worst([test, prove(folder, Drifting(folder))]).fast_difference == test.fast_difference
