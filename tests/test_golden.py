"""Expected values: what registered networks compute does not drift, on any kind of processor.

Equality of modes and forms is tested elsewhere; these tests notice what would change all of them.
"""

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
from golden_nets import FILE, RENEW, TOLERANCES, list_faults, measure, read_levels
from tiny_nets import KINDS, NAMES

from densenet_backbones.dense_block import Memory

EXPECTED = json.loads(FILE.read_text())
# As the fixture `instructions` calls it: what one of both has compiled, the other finds.
CXX = os.environ.get("CXX") or "c++"

# Environment of torch, oneDNN, MKL and our own compiler, by the instructions that they may use.
WITHOUT_AVX = {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
WITHOUT_AVX |= {"ATEN_CPU_CAPABILITY": "default"}
INSTRUCTIONS = {
    "all there are": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CXX": f"{CXX} -mno-avx512f",
    },
    "sse": {**WITHOUT_AVX, "CXX": f"{CXX} -mno-avx"},
    "no kernels": {**WITHOUT_AVX, "DENSENET_BACKBONES_NATIVE": "0"},
}
PROGRAM = """
import json, sys
import densenet_backbones, torch
from golden_nets import FILE, list_faults
from tiny_nets import KINDS
torch.set_num_threads(1)
turn, turns, *modes = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
faults = []
for i, (name, entry) in enumerate(json.loads(FILE.read_text()).items()):
    # Nets of one kind differ in depth: one in all modes stands for them on each kind of processor,
    # the others take turns with both.
    if name in KINDS:
        faults += list_faults(name, entry["values"], modes)
    elif i % turns == turn:
        faults += list_faults(name, entry["values"], [modes[i // turns % len(modes)]])
print(json.dumps([torch.backends.cpu.get_cpu_capability(), faults]))
"""


def test_every_name_has_expected_values_in_a_small_file():
    assert list(EXPECTED) == NAMES, RENEW
    assert {name: read_levels(name) for name in NAMES} == {
        name: entry["levels"] for name, entry in EXPECTED.items()
    }, RENEW
    assert FILE.stat().st_size <= 50_000


@pytest.mark.parametrize("name", KINDS)
def test_nets_compute_the_expected_values(name):
    assert list_faults(name, EXPECTED[name]["values"], ["none", "shared"]) == [], RENEW


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"norm_eps": 1e-4}, "eval"),
        ({"pool": "max"}, "eval"),
        ({"ceil_mode": True}, "eval"),
        ({"act_layer": "leaky_relu"}, "train"),
        ({"norm_momentum": 0.11}, "statistics"),
        ({"pool": "max"}, "gradient"),
    ],
)
def test_a_fault_is_further_from_them_than_rounding(change, kind):
    name = "densenet121_features"
    found = measure(name, EXPECTED[name]["values"], ["none"], **change)
    assert max(v for what, v in found.items() if what.endswith(kind)) > 3 * TOLERANCES[kind]


@pytest.mark.long
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_name_and_every_mode_on_every_kind_of_processor(instructions):
    environment = {**os.environ, **INSTRUCTIONS[instructions]}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    turn = str(list(INSTRUCTIONS).index(instructions)), str(len(INSTRUCTIONS))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, *turn, *get_args(Memory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    capability, faults = json.loads(done.stdout.splitlines()[-1])
    wanted = environment.get("ATEN_CPU_CAPABILITY", capability.lower())
    if capability.lower() != wanted:
        pytest.skip(f"the processor has {capability}, not {wanted}")
    assert faults == [], RENEW
