"""Weights of another model to start from, as far as they fit."""

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.inference.model_file import (
    compare_names,
    read_spec,
    read_weights,
    select_fitting_weights,
)
from densenet_backbones.training.tasks.task import AnyTask


def start_from(task: AnyTask, file: str) -> list[str]:
    """Take the weights of a file that fit the model.

    Returns:
        Lines that say how many were taken and which were not.

    Raises:
        CheckpointError: The file cannot be read safely, nothing in it fits, or its classes are the
            data's in another order.
    """
    described = read_spec(file, task.spec_type)
    other = compare_names(file, described, task.spec) if described else []
    fitting, left = select_fitting_weights(task.model, weights := read_weights(file))
    if not fitting:
        raise CheckpointError(
            f"{file}: none of its {len(weights)} weights fits {task.spec.name}; "
            f"first: {', '.join(list(weights)[:3])}"
        )
    task.model.load_state_dict(fitting, strict=False)
    taken = f"Started from {file}: {len(fitting)} of {len(task.model.state_dict())} tensors taken."
    return [taken, *other, *(f"  left out: {line}" for line in left)]
