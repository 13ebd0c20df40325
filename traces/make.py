"""Make the recorded traces of this folder: traces/mlp and traces/cnn.

    python traces/make.py

They are the guide's two models, a prediction and a training step each, on the device TGX with every
rewrite. Of each only trace.jsonl is kept; `tgx show traces/mlp` and the tests read it. The README's
picture, traces/mlp.svg, is drawn from it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make(name: str) -> None:
    folder = HERE / name
    environment = {**os.environ, "DEV": "TGX", "PARALLEL": "0", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "tgx", "trace", "--level", "full", "-o", str(folder)]
    subprocess.run([*command, "guide_step.py", name], cwd=HERE, env=environment, check=True)
    for path in folder.iterdir():
        if path.name != "trace.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{folder}: {(folder / 'trace.jsonl').stat().st_size / 1024:.0f} KB")
    if name == "mlp":
        command = [sys.executable, "-m", "tgx", "show", str(folder), "--view", "svg"]
        subprocess.run([*command, "-o", f"{folder}.svg"], env=environment, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("mlp", "cnn"):
        make(name)
