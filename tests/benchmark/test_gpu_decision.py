"""The verdict on the Triton kernels, from made-up evidence and from stand-ins on a CPU."""

import math

import pytest
import torch
from tiny_nets import tiny

from densenet_backbones.benchmark import gpu_decision
from densenet_backbones.benchmark.gpu_decision import (
    Evidence,
    judge,
    measure_inference,
    measure_training,
)
from densenet_backbones.dense_block import backends

GOOD = {"error": 0.011, "plain_error": 0.01, "to_plain": (0.8, 0.9), "to_compiled": (0.9, 1.0)}


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "on by default"),
        ({"refusal": "they need compute capability 8.0"}, "off: they need compute capability 8.0"),
        ({"error": 0.018}, "off: the error 1.8e-02 is above 1.7e-02, which rounding explains"),
        ({"error": math.nan}, "off: the error nan is above 1.7e-02, which rounding explains"),
        ({"to_plain": (0.8, 1.02)}, "off: takes up to 1.02 of the time of plain operators"),
        ({"to_compiled": (1.1, 1.2)}, "off: takes 1.15 of the time of torch.compile"),
    ],
)
def test_verdicts(fields, verdict):
    assert judge(Evidence("inference", **GOOD | fields)) == verdict


def test_the_table_ends_with_one_verdict_line():
    evidence = (Evidence("inference", **GOOD), Evidence("training", refusal="no card"))
    text = gpu_decision._tabulate("a card", evidence).text()
    assert text.splitlines()[-1] == "verdict: inference on by default; training off: no card"
    assert "0.85 (0.80 .. 0.90)" in text and "0.95 (0.90 .. 1.00)" in text


@pytest.fixture
def switched(monkeypatch):
    """Kernels seem to be there; says for each question about them if they were switched on."""
    monkeypatch.setenv(backends.TRITON_SWITCH, "0")
    asked = []

    def answer(*tensors):
        asked.append(backends.is_triton_asked_for())
        return asked[-1]

    monkeypatch.setattr(gpu_decision, "has_triton", answer)
    monkeypatch.setattr(gpu_decision, "has_triton_training", answer)
    return asked


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A net of two layers stands in for a published one."""
    monkeypatch.setattr(
        gpu_decision, "_build", lambda net: tiny(f"{net}_features", block_config=(1, 1))
    )


@pytest.mark.parametrize("measure", [measure_inference, measure_training])
def test_evidence_of_kernels_that_are_the_plain_operators(measure, switched):
    """On a CPU, where the switch changes nothing: equal, and as fast."""
    compiled = []
    evidence = measure(
        "densenet121",
        (4, 3, 64, 64),
        turns=1,
        device=torch.device("cpu"),
        compile_net=lambda net: compiled.append(net) or net,
        dtype=torch.float32 if measure is measure_inference else None,
    )
    assert switched == [True] and len(compiled) == 1
    assert evidence.refusal is None
    assert evidence.error == evidence.plain_error < 1e-3
    assert len(evidence.to_plain) == len(evidence.to_compiled) == 1
    assert not backends.is_triton_asked_for(), "the switch is put back"


@pytest.mark.parametrize("measure", [measure_inference, measure_training])
def test_kernels_that_do_not_run_are_off(measure, monkeypatch):
    monkeypatch.setattr(backends, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(
        "densenet_backbones.dense_block.triton.availability.explain_unavailability",
        lambda *args: f"a reason for {measure.__name__}",
    )
    evidence = measure(
        "densenet121",
        (4, 3, 64, 64),
        turns=1,
        device=torch.device("cpu"),
        compile_net=lambda net: net,
        dtype=torch.float32 if measure is measure_inference else None,
    )
    assert judge(evidence).endswith(f"Triton kernels: a reason for {measure.__name__}")
