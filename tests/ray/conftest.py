"""Tests with Ray itself, in an environment of their own: `make ray-test`. Other runs do not collect them."""

import sys
from importlib import metadata
from pathlib import Path

# Not the module: the folder of these tests has the same name.
_IS_INSTALLED = any(one.name == "ray" for one in metadata.distributions())
collect_ignore_glob = [] if _IS_INSTALLED else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
