"""Says how to get the optional packages of cnnserve: from pip or, in a container of this project, from another image.

Imports nothing but `os`, because `cli` imports it first.
"""

import os

# Set by the project's images to their own name: cpu, gpu or export.
IMAGE = "CNNSERVE_IMAGE"
# The images by the extras that only they have.
_IMAGES = {"gpu": "gpu", "export": "export", "import": "export", "train": "export", "signing": "export"}


def image() -> str:
    """Returns the name of the project's image in which this process runs, or "" if it runs in none."""
    return os.environ.get(IMAGE, "")


def install(extra: str) -> str:
    """Returns what to do to have an extra; `extra` may name several, with commas between them."""
    here = image()
    if not here:
        return f'pip install "cnnserve[{extra}]"'
    other = next((_IMAGES[name] for name in extra.split(",") if name in _IMAGES), here)
    if other == here:
        return f"build the image with it: deploy/docker/build.sh {here} TAG --build-arg EXTRAS={extra}"
    return f"use the image {other} (deploy/docker/build.sh {other}) instead of {here}"
