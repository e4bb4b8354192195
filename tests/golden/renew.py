"""Renews the expected values of all registered networks: ``python tests/golden/renew.py``.

They are computed in float64, by plain operators. It prints the names whose values changed by more
than the tests' tolerances.
"""

import json
import sys
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1] / "support").glob("**/")))

import timm
from golden_nets import FILE, TOLERANCES, compare, compute, read_levels

import densenet_backbones  # noqa: F401 # registers the names


def main() -> None:
    """Write the file anew; print a line for each name that changed."""
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    after = {}
    for name in timm.list_models(module="timm_models"):
        values = {
            key: [float(f"{value:.9g}") for value in numbers]
            for key, numbers in compute(name).items()
        }
        after[name] = {"levels": read_levels(name), "values": values}
        old = before.get(name, {}).get("values", {})
        changed = [
            key
            for key in values
            if key not in old or compare(values[key], old[key]) > TOLERANCES[key.split()[0]]
        ]
        if changed or before[name]["levels"] != after[name]["levels"]:
            print(f"{name}: {', '.join(changed) or 'levels'}")
    rows = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in after.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
