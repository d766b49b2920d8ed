"""Tests with Ray itself, in an environment of their own: `make ray-test`. Other runs do not collect them."""

import importlib.util
import sys
from pathlib import Path

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
