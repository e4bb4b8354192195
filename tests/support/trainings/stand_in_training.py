"""A stand-in for ``densenet train`` that takes milliseconds: same words, same files, made-up AP.

It evaluates four times, writes a checkpoint after each, goes on with ``--resume``, ends in order by
SIGTERM, waits for the file ``STAND_IN_GATE`` where one is named, refuses a growth rate below 1
and is killed by growth rate 99 as if memory had run out.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

CONFIG = """\
seed_everything: 0
model:
  detector: dsod_tiny
  args: null
  optimizer:
    name: adamw
    lr: 0.01
  schedule:
    name: cosine
data:
  batch_size: 8
trainer:
  max_epochs: 4
"""
EVALUATIONS = 4


def quality(options):
    """AP at the end: best at growth 24 and a rate of 0.01, a little by the seed."""
    growth, lr = int(options.get("model.args.growth_rate", 8)), options.get("model.optimizer.lr", 1)
    return 0.5 + growth / 100 - abs(float(lr) - 0.01) + int(options["seed"]) / 1000


def main(words):
    options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    if "--print_config" in words:
        if "--data.batch_sise=4" in words:
            sys.exit("error: unrecognized arguments: --data.batch_sise=4")
        print(CONFIG)
        return
    growth = int(options.get("model.args.growth_rate", 8))
    print("begins", *words, flush=True)
    if growth < 1:
        sys.exit("error: growth_rate must be at least 1, got -1")
    run, asked = Path(options["run-dir"]), []
    last = run / "checkpoints" / "last.ckpt"
    done = int(last.read_text()) if "--resume" in words else 0
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    last.parent.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(CONFIG)
    gate = os.environ.get("STAND_IN_GATE")
    while gate and not Path(gate).exists():
        time.sleep(0.05)
    for evaluation in range(done, EVALUATIONS):
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
        if growth == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        write_summary(run, options, evaluation + 1)
        last.write_text(str(evaluation + 1))
        if asked:
            sys.exit(143)
    (run / "model.safetensors").write_text("")


def write_summary(run, options, done):
    """What the sweep reads of a run, in the form of the real one."""
    growth = int(options.get("model.args.growth_rate", 8))
    shares = [(n + 1) / EVALUATIONS for n in range(done)]
    evaluations = [
        {"epoch": n + 1, "step": n + 1, "numbers": {"AP": quality(options) * share}}
        for n, share in enumerate(shares)
    ]
    content = {
        "format": 1,
        "ended": "finished" if done == EVALUATIONS else "running, or killed",
        "experiment": {"images_per_step": 8, "memory_kept_bytes": growth * 2**20},
        "parameters": growth * 1000,
        "macs": growth * 1e6,
        "monitor": "AP",
        "evaluations": evaluations,
        "time": {"wall_seconds": 2.0, "images_per_second": 80 / growth, "step_cpu_seconds": 0.1},
        "memory": {"peak_rss_bytes": 2**30},
    }
    draft = run / "summary.draft"
    draft.write_text(json.dumps(content))
    draft.replace(run / "summary.json")


if __name__ == "__main__":
    main(sys.argv[1:])
