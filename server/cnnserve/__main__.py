# PYTHON_ARGCOMPLETE_OK
"""Runs the `cnnserve` command for `python -m cnnserve`."""

import sys

from cnnserve.cli import main

sys.exit(main())
