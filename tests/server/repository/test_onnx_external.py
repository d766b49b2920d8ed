"""The files to which ONNX files refer, compared with the messages of the onnx package."""

import io
import itertools
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from cnnserve.repository.onnx_external import Reference, references
from support import REPOSITORY, tiny_onnx

LOCATIONS = st.sampled_from(["w", "x", "data/y", "../z", "", "ä", "/a"])


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    tensor = TensorProto(name=draw(st.sampled_from("ab")), data_type=1, dims=[1], raw_data=b"1234")
    if draw(st.booleans()):
        tensor.data_location = TensorProto.EXTERNAL
        entries = [("offset", "4"), ("location", draw(LOCATIONS)), ("length", "4")]
        for key, value in draw(st.permutations(entries)):
            tensor.external_data.add(key=key, value=value)
    return tensor


SPARSE = st.builds(SparseTensorProto, values=tensors(), indices=tensors(), dims=st.just([1]))


def attributes(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[AttributeProto]:
    some = {"t": tensors(), "g": graphs, "sparse_tensor": SPARSE, "i": st.just(3), "s": st.just(b"13")}
    many = {"tensors": tensors(), "graphs": graphs, "sparse_tensors": SPARSE}
    fields = some | {name: st.lists(of, max_size=2) for name, of in many.items()}
    one = st.one_of(*(st.builds(AttributeProto, name=st.just("a"), **{name: of}) for name, of in fields.items()))
    return one | st.builds(AttributeProto, **fields)


def nodes(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[list[NodeProto]]:
    node = st.builds(NodeProto, op_type=st.just("Constant"), attribute=st.lists(attributes(graphs), max_size=2))
    return st.lists(node, max_size=2)


def graph_of(graphs: st.SearchStrategy[GraphProto]) -> st.SearchStrategy[GraphProto]:
    return st.builds(
        GraphProto,
        name=st.just("g"),
        node=nodes(graphs),
        initializer=st.lists(tensors(), max_size=2),
        sparse_initializer=st.lists(SPARSE, max_size=1),
    )


GRAPHS = st.recursive(st.builds(GraphProto, initializer=st.lists(tensors(), max_size=1)), graph_of, max_leaves=3)
FUNCTIONS = st.builds(
    onnx.FunctionProto, name=st.just("f"), node=nodes(GRAPHS), attribute_proto=st.lists(attributes(GRAPHS), max_size=1)
)
TRAINING = st.builds(onnx.TrainingInfoProto, initialization=GRAPHS, algorithm=GRAPHS)
MODELS = st.builds(
    ModelProto,
    ir_version=st.just(10),
    graph=graph_of(GRAPHS),
    functions=st.lists(FUNCTIONS, max_size=1),
    training_info=st.lists(TRAINING, max_size=1),
)


def every_tensor(message: Message) -> Iterator[TensorProto]:
    """Every tensor anywhere in a message."""
    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from every_tensor(inner)


def locations(found: Iterator[TensorProto]) -> set[str]:
    return {entry.value for tensor in found for entry in tensor.external_data if entry.key == "location"}


@given(MODELS)
def test_every_tensor_counts(model: ModelProto) -> None:
    plain = itertools.chain(
        model.graph.initializer, (attribute.t for node in model.graph.node for attribute in node.attribute)
    )
    found = references(io.BytesIO(model.SerializeToString()))
    assert {reference.location for reference in found} == locations(every_tensor(model))
    assert {reference.location for reference in found if not reference.nested} <= locations(plain)
    assert [reference.location for reference in found] == sorted({reference.location for reference in found})


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_are_no_onnx(data: bytes) -> None:
    try:
        found = references(io.BytesIO(data))
    except ValueError:
        return
    assert all(isinstance(reference, Reference) for reference in found)


@given(MODELS, st.data())
def test_what_the_onnx_package_reads_of_a_changed_file_is_found(model: ModelProto, data: st.DataObject) -> None:
    """No change of the bytes may hide a file from the walk that the package finds."""
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] = data.draw(st.integers(0, 255))
    changed = ModelProto()
    try:
        changed.ParseFromString(bytes(content))
        found = references(io.BytesIO(content))
    except Exception:
        return
    hidden = locations(every_tensor(changed)) - {reference.location for reference in found}
    assert not hidden


def test_real_files() -> None:
    assert references(io.BytesIO(tiny_onnx())) == []
    with (REPOSITORY / "lenet5" / "1" / "model.onnx").open("rb") as file:
        assert references(file) == []


def test_deep_nesting_is_no_problem() -> None:
    graph = GraphProto(initializer=[external("deep")])
    for _ in range(30):
        graph = GraphProto(node=[NodeProto(attribute=[AttributeProto(g=graph)])])
    data = ModelProto(graph=graph).SerializeToString()
    assert references(io.BytesIO(data)) == [Reference("deep", nested=True)]


def external(location: str, **fields: Any) -> TensorProto:
    tensor = TensorProto(name="w", data_type=1, data_location=TensorProto.EXTERNAL, **fields)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_a_path_that_is_no_text_is_refused() -> None:
    data = ModelProto(graph=GraphProto(initializer=[external("weights")])).SerializeToString()
    with pytest.raises(ValueError, match="utf-8"):
        references(io.BytesIO(data.replace(b"weights", b"we\xffghts")))


def test_a_path_that_is_too_long_is_refused() -> None:
    data = ModelProto(graph=GraphProto(initializer=[external("a" * 5000)])).SerializeToString()
    with pytest.raises(ValueError, match="a field has 5000 bytes"):
        references(io.BytesIO(data))
