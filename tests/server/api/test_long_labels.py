"""The bytes of many labels are those that protobuf would write."""

from hypothesis import given
from hypothesis import strategies as st

from cnnserve.api.long_labels import _field, labels_field
from cnnserve.wire import classifier_pb2 as pb


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200)))
def test_labels_are_as_protobuf_writes_them(labels: list[str]) -> None:
    assert labels_field(tuple(labels)) == pb.ModelVersion(labels=labels).SerializeToString()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200)))
def test_a_field_of_several_parts_is_one_field(parts: list[str]) -> None:
    written = b"".join(_field(pb.Model.DESCRIPTOR.fields_by_name["name"].number, *(part.encode() for part in parts)))
    assert pb.Model.FromString(written).name == "".join(parts)
