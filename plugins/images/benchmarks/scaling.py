"""Training on one and on several devices: throughput and loss, by the command a user types.

    python plugins/images/benchmarks/scaling.py --data DIR [--devices 2] [--steps 600] [--out scaling.json]

DIR holds CIFAR-10 as JPEG in an npz (arrays jpeg, offsets, labels). The UNet is trained at 32 x 32 with one global
batch size, so that the number of devices changes the speed and, but for the draws, not the losses. Speed is the median
of the rows after the first quarter; the curves are compared by their means over quarters of the run.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def decoded(folder: Path, place: Path, limit: int | None) -> Path:
    """The pictures as an npz that the plugin reads."""
    with np.load(folder / "train.npz") as packed:
        jpeg, offsets, labels = packed["jpeg"], packed["offsets"], packed["labels"]
    count = len(labels) if limit is None else limit
    pictures = [Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())) for i in range(count)]
    np.savez(place, images=np.stack([np.asarray(picture) for picture in pictures]), labels=labels[:count])
    return place


def train(folder: Path, data: Path, *settings: str) -> dict[str, Any]:
    """One run; its rows, and how long it took to a speed that stays."""
    quick = ["eval.metrics=[]", "eval.count=2", "eval.steps=[1]", "eval.paths=2", "sample.count=16", "sample.steps=2"]
    command = [sys.executable, "-m", "flowplat", "run", "images", "data=npz", f"data.path={data}", "network=unet"]
    done = subprocess.run([*command, *quick, *settings, "--out", str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(settings)} ended with {done.returncode}:\n{done.stderr[-1500:]}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    quarter = len(rows) // 4
    hardware = json.loads((folder / "provenance.json").read_text())["hardware"]
    return {
        "settings": list(settings),
        "samples_per_s": statistics.median(row["samples_per_s"] for row in rows[quarter:]),
        "losses": [statistics.fmean(row["loss"] for row in rows[i * quarter : (i + 1) * quarter]) for i in range(4)],
        "gpu": hardware["gpu"],
        "processes": hardware["processes"],
    }


def main() -> None:
    """Print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--channels", default="[128, 256, 256]")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--limit", type=int, help="pictures; all if not given")
    parser.add_argument("--accelerator", default="cuda")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = [
        f"network.channels={options.channels}", f"network.blocks={options.blocks}", f"train.batch_size={options.batch}",
        f"train.steps={options.steps}", "train.lr=2e-4", "train.warmup=100", "train.schedule=constant",
        f"train.log_every={max(1, options.steps // 40)}", f"train.checkpoint_every={options.steps}",
        f"engine.accelerator={options.accelerator}", f"engine.precision={options.precision}",
    ]  # fmt: skip
    wanted = {
        "1 device": ["engine.devices=1"],
        f"{options.devices} devices": [f"engine.devices={options.devices}"],
        f"{options.devices} devices, fsdp": [f"engine.devices={options.devices}", "engine.strategy=fsdp"],
    }
    found: dict[str, dict[str, Any]] = {}
    print(f"UNet {options.channels}, batch {options.batch}, {options.precision}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        data = decoded(options.data, Path(place) / "cifar.npz", options.limit)
        for name, more in wanted.items():
            run = train(Path(place) / name.replace(" ", "-"), data, *settings, *more)
            base = found.setdefault("1 device", run)
            apart = max(abs(a / b - 1) for a, b in zip(run["losses"], base["losses"], strict=True))
            speedup = run["samples_per_s"] / base["samples_per_s"]
            found[name] = run | {"speedup": speedup, "losses_apart": apart}
            losses = " ".join(f"{loss:.4f}" for loss in run["losses"])
            print(f"  {name:20} {run['samples_per_s']:9.0f} images/s  {speedup:5.2f} x   losses {losses}"
                  f"   apart {100 * apart:.2f} %   {run['gpu']}", flush=True)  # fmt: skip
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
