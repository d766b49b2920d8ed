"""Small file systems, for real errors of the disk."""

import os
import subprocess
from pathlib import Path


def mounted(folder: Path, kib: int) -> bool:
    """Mounts a file system of `kib` KiB at the folder. Returns whether this was possible."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    return os.getuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
