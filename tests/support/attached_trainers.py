"""A data module in the hands of a trainer, as far as it looks at one."""

from types import SimpleNamespace

import torch

FILL = (1.0, 2.0, 3.0)


def with_trainer(data, world_size=1, rank=0, batches=0):
    """The data module, of one process of several, `batches` batches of its epoch done."""
    transform = SimpleNamespace(fill_color=FILL)
    model = SimpleNamespace(image_size=(48, 32), transform=transform)
    progress = SimpleNamespace(current=SimpleNamespace(ready=batches), is_last_batch=False)
    data.trainer = SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        lightning_module=SimpleNamespace(model=model),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data
