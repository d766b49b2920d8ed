"""A layout in the text of a config.pbtxt: the layout changes, and not a byte of the rest."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.model_config.layout import Layout
from cnnserve.model_config.pbtxt import parse
from cnnserve.tools.tuning.writing import MARK, replace_file, with_layout

LAYOUT = Layout(2, 1, 4, 500)
PARTS = (
    'name: "m"  # a "quoted" { brace\n',
    "# of the team\nmax_batch_size: 8;\n",
    "instance_group { count: 3 kind: KIND_CPU }\n",
    "instance_group [ { count: 1 }, { count: 2 } ]\n",
    'parameters { key: "intra_op_thread_count" value { string_value: "7" } }\n',
    'parameters: < key: "intra_op_thread_count", value: < string_value: "7" > >, \n',
    'parameters { key: "cnnserve.max_pixels" value { string_value: "100" } }  # small\n',
    "dynamic_batching { }\n",
    "dynamic_batching { preferred_batch_size: [ 2, 8 ]\n  # patient\n  max_queue_delay_microseconds: 9\n"
    "  preserve_ordering: true }\n",
    'output { name: "o" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "a" ".txt" }\n',
    'input [ { name: "i" data_type: TYPE_UINT8 dims: [ 3 ] } ]\n',
)


# A message may have the field only once.
CONFIGS = st.lists(st.sampled_from(PARTS), unique=True).filter(
    lambda parts: sum(part.startswith("dynamic_batching") for part in parts) < 2
)


@given(CONFIGS, st.booleans())
def test_the_config_is_the_old_one_with_the_layout(parts: list[str], ends: bool) -> None:
    text = "".join(parts) if ends else "".join(parts).rstrip("\n")
    new = with_layout(text, LAYOUT, ["why"])
    assert parse(new, "m") == LAYOUT.applied(parse(text, "m"))


@given(st.lists(st.sampled_from([PARTS[0], PARTS[1], PARTS[6], PARTS[9], PARTS[10]]), unique=True))
def test_the_rest_keeps_every_byte(parts: list[str]) -> None:
    assert with_layout("".join(parts), LAYOUT, ["why"]).startswith("".join(parts))


@given(CONFIGS)
def test_a_second_layout_leaves_nothing_of_the_first(parts: list[str]) -> None:
    once = with_layout("".join(parts), LAYOUT, ["why", "when"])
    assert with_layout(once, LAYOUT, ["why", "when"]).count(MARK) == 2
    assert parse(with_layout(once, Layout(1, 2, 8), []), "m") == Layout(1, 2, 8).applied(parse("".join(parts), "m"))


def test_what_it_looks_like() -> None:
    text = 'name: "m"\ninstance_group { count: 3 }\ndynamic_batching { preserve_ordering: true }  # in order\n'
    assert with_layout(text, Layout(2, 1, 4), ["today"]) == (
        'name: "m"\ndynamic_batching { preferred_batch_size: [ 4 ]  preserve_ordering: true }  # in order\n'
        "# cnnserve tune: today\ninstance_group { kind: KIND_CPU count: 2 }\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
    )


def test_lines_of_windows_stay_so() -> None:
    assert "\n" not in with_layout('name: "m"\r\n', LAYOUT, ["why"]).replace("\r\n", "")


def test_a_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text("old")
    path.chmod(0o640)
    replace_file(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "config.pbtxt").symlink_to("real")
    replace_file(tmp_path / "config.pbtxt", b"new")
    assert (tmp_path / "config.pbtxt").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_keeps_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").mkdir()
    with pytest.raises(OSError, match=r"config\.pbtxt"):
        replace_file(tmp_path / "config.pbtxt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["config.pbtxt"]
