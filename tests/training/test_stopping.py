"""What several processes agree on, one process at a time."""

import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from densenet_backbones.training.resuming.stopping import OrderlyStop

TWO = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))


def test_a_signal_during_the_agreement_is_kept_for_the_next(monkeypatch):
    stop = OrderlyStop()
    during = [lambda: stop._note(signal.SIGTERM, None), lambda: None]
    # No process has asked for a stop when the first sum begins.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda asked, operation: during.pop(0)())
    stop.on_train_epoch_start(TWO, None)
    assert stop.received == signal.SIGTERM
    with pytest.raises(SIGTERMException):
        stop.on_train_epoch_start(TWO, None)
    assert not during


def test_a_signal_at_another_process_stops_this_one(monkeypatch):
    stop = OrderlyStop()
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda asked, operation: asked.fill_(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        stop.on_train_epoch_start(TWO, None)
    assert stop.received == signal.SIGINT
