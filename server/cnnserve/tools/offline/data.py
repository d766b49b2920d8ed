"""Ray Data: classifies the images of a dataset, or the parts of a run, with actors that have shares of CPUs or GPUs."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import ActorPoolStrategy, Dataset

import ray
from cnnserve.errors import InvalidInput
from cnnserve.tools.offline.runs import Part, image_groups
from cnnserve.tools.offline.worker import Outcome, Task, Worker
from cnnserve.transports.ray_plan import read

# What a worker has in memory at a time: images, and their bytes.
_AT_ONCE = 128
_BYTES_AT_ONCE = 64 * 2**20
_CLASS = pa.struct([("index", pa.int32()), ("label", pa.string()), ("probability", pa.float32())])
_RESULT = [
    pa.field("label", pa.string()),
    pa.field("index", pa.int32()),
    pa.field("probability", pa.float32()),
    pa.field("classes", pa.list_(_CLASS)),
    pa.field("version", pa.int32()),
    pa.field("error", pa.string()),
]


def task(
    repository: str, model: str, version: int = 0, *, top_k: int = 0, cpus: float = 1.0, gpus: float = 0.0
) -> Task:
    """Returns what workers need to know. Raises `ConfigError` if there is no such model, see `ray_plan.read`."""
    options = {"version": version, "cpus": cpus, "gpus": gpus}
    return Task(read({"repository": repository, "models": {model: options}}), model, top_k)


def classify_dataset(
    ds: Dataset,
    *,
    repository: str,
    model: str,
    version: int = 0,
    column: str = "image",
    top_k: int = 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    actors: tuple[int, int] = (1, 1),
    batch_size: int = _AT_ONCE,
) -> Dataset:
    """Returns the dataset without `column`, with the classes of the encoded image that it had.

    The new columns are `label`, `index` and `probability` of the most probable class, `classes` (`top_k` of them),
    `version` and `error`. A bad image has an error and no classes. `actors`: the least and the largest number of
    workers, each with `cpus` and `gpus`. `repository` is the absolute path of the model repository on every node.
    Raises `ConfigError` if there is no such model.
    """
    return ds.map_batches(
        _Rows,
        fn_constructor_args=(task(repository, model, version, top_k=top_k, cpus=cpus, gpus=gpus), column),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=actors[0], max_size=actors[1]),
        num_cpus=cpus,
        num_gpus=gpus,
    )


def run_parts(
    parts: Sequence[Part], work: Task, output: Path, *, column: str, cpus: float, gpus: float, actors: tuple[int, int]
) -> Iterator[Mapping[str, int]]:
    """Classifies the parts of a run into files of `output`. Yields the numbers of images and errors of each part.

    Ray does a part again if its worker is lost.
    """
    # Each in a block of its own, so that a worker has the paths of its parts only.
    dataset = ray.data.from_items(list(map(_as_row, parts)), override_num_blocks=len(parts))
    done = dataset.map_batches(
        _Parts,
        fn_constructor_args=(work, str(output), column),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=actors[0], max_size=actors[1], max_tasks_in_flight_per_actor=2),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    yield from done.iter_rows()


def _as_row(part: Part) -> dict[str, object]:
    # Paths may hold bytes that are no UTF-8.
    images = [os.fsencode(path) for path in part.images]
    return {"number": part.number, "images": images, "table": os.fsencode(part.table), "row_group": part.row_group}


def _as_part(row: Mapping[str, Any]) -> Part:
    images = tuple(map(os.fsdecode, row["images"]))
    return Part(row["number"], images, os.fsdecode(row["table"]), row["row_group"])


def counts(files: Iterable[Path]) -> tuple[int, int]:
    """Returns the numbers of images and of errors in files of results. Raises `InvalidInput` if one is damaged."""
    images = errors = 0
    for file in files:
        try:
            found = pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise InvalidInput(f"{file} is damaged; remove it, and its part is made again: {error}") from error
        place = next(index for index in range(len(found.schema)) if found.schema.column(index).path == "error")
        groups = [found.row_group(index) for index in range(found.num_row_groups)]
        images += found.num_rows
        errors += sum(group.num_rows - group.column(place).statistics.null_count for group in groups)
    return images, errors


def row_groups(table: str, column: str) -> int:
    """Returns the number of row groups of a parquet file. Raises `InvalidInput` if it has no such column of bytes."""
    try:
        with pq.ParquetFile(table) as file:
            kind = file.schema_arrow.field(column).type
            count = int(file.num_row_groups)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidInput(f"{table} cannot be read as parquet: {error}") from error
    except KeyError as error:
        raise InvalidInput(
            f"{table} has no column {column!r}; name that of the encoded images with --column"
        ) from error
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (is_bytes or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise InvalidInput(f"column {column!r} of {table} has type {kind}, expected encoded images (binary)")
    return count


class _Rows:
    """An actor for the batches of a dataset."""

    def __init__(self, work: Task, column: str) -> None:
        self._worker = Worker(work)
        self._column = column

    def __call__(self, batch: pa.Table) -> pa.Table:
        images = _encoded(batch[self._column])
        return _with_results(batch.drop_columns([self._column]), self._worker.classify(images), self._worker.version)


class _Parts:
    """An actor for the parts of a run."""

    def __init__(self, work: Task, output: str, column: str) -> None:
        self._worker = Worker(work)
        self._output = Path(output)
        self._column = column

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = _as_part(batch.to_pylist()[0])
        aside = self._output / f".{part.file}.{os.getpid()}.{ray.get_runtime_context().get_worker_id()}"
        images = errors = 0
        writer = None
        try:
            for table in self._tables(part):
                writer = writer or pq.ParquetWriter(aside, table.schema)
                writer.write_table(table)
                images += len(table)
                errors += len(table) - table["error"].null_count
        finally:
            if writer is not None:
                writer.close()
        if writer is not None:
            aside.replace(self._output / part.file)
        return pa.table({"images": [images], "errors": [errors]})

    def _tables(self, part: Part) -> Iterator[pa.Table]:
        if part.images:
            for paths, images in image_groups(part.images, _AT_ONCE, _BYTES_AT_ONCE):
                names = pa.table({"image": pa.array([os.fsencode(path).decode(errors="replace") for path in paths])})
                yield _with_results(names, self._worker.classify(images), self._worker.version)
            return
        with pq.ParquetFile(part.table) as file:
            for batch in file.iter_batches(_rows_at_once(file, part.row_group), row_groups=[part.row_group]):
                table = pa.Table.from_batches([batch])
                outcomes = self._worker.classify(_encoded(table[self._column]))
                yield _with_results(table.drop_columns([self._column]), outcomes, self._worker.version)


def _rows_at_once(file: pq.ParquetFile, number: int) -> int:
    """Returns how many rows of a row group have, on average, not too many bytes."""
    group = file.metadata.row_group(number)
    fit = _BYTES_AT_ONCE * int(group.num_rows) // max(1, int(group.total_byte_size))
    return max(1, min(_AT_ONCE, fit))


def _encoded(column: pa.ChunkedArray) -> list[bytes | str]:
    """Returns the encoded images of a column of bytes, or of the structs that Hugging Face's datasets write."""
    values = (value["bytes"] if isinstance(value, dict) else value for value in column.to_pylist())
    return ["the row has no image" if value is None else value for value in values]


def _with_results(table: pa.Table, outcomes: Sequence[Outcome], version: int) -> pa.Table:
    """Returns the table with the columns of results, which replace columns of the same names."""
    first = [outcome.classes[0] if outcome.classes else None for outcome in outcomes]
    columns = [
        [None if best is None else best.label for best in first],
        [None if best is None else best.index for best in first],
        [None if best is None else best.probability for best in first],
        [[vars(item) for item in outcome.classes] for outcome in outcomes],
        [version] * len(outcomes),
        [outcome.error for outcome in outcomes],
    ]
    taken = {field.name for field in _RESULT}
    table = table.drop_columns([name for name in table.column_names if name in taken])
    for field, values in zip(_RESULT, columns, strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    return table
