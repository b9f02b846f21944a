"""The wheel holds everything the program reads at run time, and works from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_is_complete(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    tracked = subprocess.run(
        ["git", "ls-files", "looptool_jax", "configs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    packed = {str(file.relative_to(installed)) for file in installed.rglob("*") if file.is_file()}
    wanted = {name if name.startswith("looptool_jax") else f"looptool_jax/{name}" for name in tracked}
    assert wanted <= packed, sorted(wanted - packed)[:5]
    code = (
        "import looptool_jax, looptool_jax.config as c, looptool_jax.loop.pool as p;"
        f"assert looptool_jax.__file__.startswith({str(installed)!r});"
        "c.load_config('quickstart'); print(sorted(c.shipped_configs()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(installed), "PATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0 and "micro" in out.stdout, out.stderr
