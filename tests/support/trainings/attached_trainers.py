"""A data module in the hands of a trainer, as far as it looks at one."""

from types import SimpleNamespace

import torch

from densenet_backbones.data.augment.model_input import ModelInput

FIXED_INPUT = ModelInput(size=(48, 32), fill_color=(1.0, 2.0, 3.0))


def with_trainer(data, world_size=1, rank=0, batches=0, model_input=FIXED_INPUT):
    """The data module, of one process of several, `batches` batches of its epoch done."""
    progress = SimpleNamespace(current=SimpleNamespace(ready=batches), is_last_batch=False)
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    data.model_input = model_input
    return data
