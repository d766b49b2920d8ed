"""`make platforms`: what pip would install on other platforms, so that every dependency has a wheel there.

pip looks for wheels of the platform that `--platform` names, but reads conditions such as `sys_platform == "win32"` as
on this machine. So it runs here with the values of the other platform.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# By name: pip's tags, and the values for conditions.
PLATFORMS = {
    "Linux x86-64": ([f"manylinux_2_{minor}_x86_64" for minor in range(35, 16, -1)], "linux", "Linux", "x86_64"),
    "Linux ARM": ([f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)], "linux", "Linux", "aarch64"),
    "macOS ARM": (
        [f"macosx_{major}_0_{kind}" for major in range(15, 10, -1) for kind in ("arm64", "universal2")],
        "darwin",
        "Darwin",
        "arm64",
    ),
    "Windows": (["win_amd64"], "win32", "Windows", "AMD64"),
}
EXTRAS = ("", "cpu", "cpu,import", "cpu,export")
_PIP = """
import sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers

values = dict(zip(("sys_platform", "platform_system", "platform_machine"), sys.argv[1:4], strict=True))
values["os_name"] = "nt" if sys.argv[1] == "win32" else "posix"
own = markers.default_environment()
markers.default_environment = lambda: {**own, **values}
sys.exit(main(sys.argv[4:]))
"""


def main() -> int:
    """Returns the exit status: 0 if everything can be installed everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", action="append", help="extras to try, with commas (default: several sets)")
    extras = parser.parse_args().extras or EXTRAS
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        results = [_try(name, wheel, chosen, folder) for name in PLATFORMS for chosen in extras]
    return 0 if all(results) else 1


def _try(name: str, wheel: Path, extras: str, folder: str) -> bool:
    tags, *values = PLATFORMS[name]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    pip = ["install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--target", folder]
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    pip += ["--implementation", "cp", "--python-version", "3.11", *platforms, wanted]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, "-c", _PIP, *values, *pip]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(f"{name:<14} {extras or 'client':<12} {'ok' if ended.returncode == 0 else 'FAILED'}", flush=True)
    if ended.returncode:
        print(ended.stderr.strip())
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
