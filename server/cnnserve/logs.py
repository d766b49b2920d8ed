"""One line on stderr per load and per problem."""

import logging
import sys
import warnings


def configure(level: str) -> None:
    """Sets up the root logger; `level` is debug, info, warning or error."""
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    # Its start and stop are part of ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Pillow warns about odd files; each of those is somebody's answer already.
    warnings.filterwarnings("ignore", module="PIL")
