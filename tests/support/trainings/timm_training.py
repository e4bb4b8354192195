"""One epoch of timm's train.py (which its package does not contain), written with timm alone.

It makes the same calls: `create_model` with ``--model-kwargs``, `create_dataset`, `create_loader`,
`create_optimizer_v2`, a cross entropy on the net's answer, and DDP where there are ranks.
"""

import argparse

import timm
import timm.data
import timm.loss
import timm.optim
import timm.utils
import torch

parser = argparse.ArgumentParser()
parser.add_argument("data")
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--model-kwargs", nargs="*", default={}, action=timm.utils.ParseKwargs)
args = parser.parse_args()

device = timm.utils.init_distributed_device(argparse.Namespace(device="cpu", dist_backend="gloo"))
ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
model = timm.create_model(
    args.model,
    pretrained=False,
    in_chans=3,
    num_classes=args.num_classes,
    drop_rate=0.0,
    drop_path_rate=None,
    drop_block_rate=None,
    global_pool=None,
    bn_momentum=None,
    bn_eps=None,
    scriptable=False,
    checkpoint_path="",
    **args.model_kwargs,
)
optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.01, weight_decay=2e-5)
if ranks > 1:
    model = torch.nn.parallel.DistributedDataParallel(model)
loader = timm.data.create_loader(
    timm.data.create_dataset("", root=args.data, split="train", is_training=True),
    input_size=(3, 32, 32),
    batch_size=2,
    is_training=True,
    num_workers=0,
    distributed=ranks > 1,
    use_prefetcher=False,
)
loss_of = timm.loss.LabelSmoothingCrossEntropy(0.1)
model.train()
for images, labels in loader:
    loss = loss_of(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}", flush=True)
