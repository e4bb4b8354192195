"""Space of a sweep: the options that are tried, and the values of each.

On the command line, an option of the training and its values, ``--try KEY=VALUES``::

    model.args.growth_rate=8,12,24      each of these values
    model.args.block_config=[4,8],[6,12]
    optimizer.lr=1e-4..1e-1:log         any number between these, by their logarithm
    model.args.bn_size=1..4             any whole number between these
    data.batch_size=8..64:step=8

In a file, ``--space FILE``: a mapping of the same keys, to a list or to such a text.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.messages import nearest, pluralize
from densenet_backbones.untrusted.plain_yaml import parse_yaml, read_yaml

MAX_KNOBS, MAX_CHOICES, MAX_GRID = 30, 200, 10_000
Value = str | int | float | bool | None
"""Value of a knob; lists and mappings are text, in JSON."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::\w+(?:=[^:]*)?)*)")
_FLOAT = re.compile(_NUMBER)
_IN_ARGS = ("growth_rate", "block_config", "num_init_features", "bn_size", "compression")
"""Fields of a network that every builder takes as its own argument; see `heads.options`."""
_OF_SWEEP = {
    "seed": "--seeds repeats every point with several",
    "seed_everything": "--seeds repeats every point with several",
    "budget": "--budget is the same for all trials",
    "epochs": "--epochs or --budget are the same for all trials",
    "run_dir": "the sweep names the folders",
    "name": "the sweep names the folders",
    "resume": "the sweep goes on with its trials itself",
    "ckpt_path": "the sweep goes on with its trials itself",
}


@dataclass(frozen=True)
class Knob:
    """An option that is tried, and its values.

    Attributes:
        key: Option of the training, without dashes.
        choices: Values, or empty for a range.
        low: Lower end of a range, which belongs to it.
        high: Upper end.
        log: Take numbers by their logarithm.
        step: Distance of two numbers; None for 1 of whole numbers, and none of others.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def distribution(self) -> BaseDistribution:
        """The values as Optuna has them."""
        if self.choices:
            return CategoricalDistribution(self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def write(self, value: Value) -> str:
        """Return the word of the command line that sets a value."""
        return f"--{self.key}={value if isinstance(value, str) else json.dumps(value)}"

    def describe(self) -> str:
        """Return the values in the grammar that `parse_values` reads."""
        if self.choices:
            return ",".join(v if isinstance(v, str) else json.dumps(v) for v in self.choices)
        log, step = ":log" if self.log else "", f":step={self.step:g}" if self.step else ""
        return f"{self.low!r}..{self.high!r}{log}{step}"


def parse_knob(text: str) -> Knob:
    """Read a knob, ``KEY=VALUES``.

    Raises:
        ValueError: It is none; says what is wrong.
    """
    key, equals, values = text.partition("=")
    key = key.strip().lstrip("-")
    if not equals or not key or not values.strip():
        raise ValueError(
            f"--try must be KEY=VALUES, such as model.args.growth_rate=8,12,24 or "
            f"optimizer.lr=1e-4..1e-1:log, got {text!r}"
        )
    return parse_values(key, values.strip())


def parse_values(key: str, values: object) -> Knob:
    """Read the values of a key: a list, or a text in the grammar above.

    Raises:
        ValueError: They are none; says what is wrong.
    """
    if isinstance(values, str) and (written := _RANGE.fullmatch(values)):
        return _parse_range(key, *written.groups())
    if isinstance(values, str):
        if ".." in values and not values.startswith(("[", "{")) and "," not in values:
            raise ValueError(
                f"{key}: a range is LOW..HIGH, LOW..HIGH:log or LOW..HIGH:step=S, got {values!r}"
            )
        values = parse_yaml(f"[{values}]", Path(f"--try {key}"), ValueError)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{key} must have a list of values or a range, got {values!r}")
    choices = tuple(map(_read_value, values))
    if len(choices) > MAX_CHOICES:
        raise ValueError(
            f"{key} has {pluralize(len(choices), 'value')}, more than {MAX_CHOICES}; give a range"
        )
    # 1 and True, and 1 and 1.0, are one for Python and Optuna.
    if len(set(choices)) < len(choices):
        raise ValueError(f"{key} has a value twice: {', '.join(map(str, choices))}")
    return Knob(key, choices)


def _parse_range(key: str, low: str, high: str, rest: str) -> Knob:
    ends = [_read_number(low), _read_number(high)]
    is_whole = all(isinstance(end, int) for end in ends)
    ends = ends if is_whole else [float(end) for end in ends]
    is_log, step = False, None
    for word in rest.split(":")[1:]:
        name, _, number = word.partition("=")
        if word == "log":
            is_log = True
        elif name == "step" and _FLOAT.fullmatch(number) and float(number) > 0:
            step = _read_number(number)
        else:
            raise ValueError(f"{key}: behind a range stand log or step=NUMBER, got {word!r}")
    if not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
        raise ValueError(f"{key}: the range must rise, got {low}..{high}")
    if is_log and ends[0] <= 0:
        raise ValueError(f"{key}: a range by its logarithm begins above 0, got {low}")
    if is_log and step is not None:
        raise ValueError(f"{key}: a range has log or step, not both")
    if is_whole and isinstance(step, float):
        raise ValueError(f"{key}: the step of whole numbers is one too, got {step}")
    return Knob(key, (), ends[0], ends[1], is_log, step)


def _read_number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _read_value(value: object) -> Value:
    # YAML 1.1 takes 1e-3, without a point, for a text.
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"values must be finite, got {value}")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value)


def read_space(file: Path) -> list[Knob]:
    """Read the knobs of a YAML file.

    Raises:
        ValueError: The file is none.
        OSError: It cannot be read.
    """
    content = read_yaml(file, ValueError)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{file}: must be a mapping of keys to their values")
    return [parse_values(str(key), values) for key, values in content.items()]


def check_space(knobs: Collection[Knob]) -> None:
    """Refuse a space that is empty or too large, or has a key twice.

    Raises:
        ValueError: Says which.
    """
    keys = [knob.key for knob in knobs]
    if not keys:
        raise ValueError("nothing is tried: give --try KEY=VALUES, or --space FILE")
    if len(keys) > MAX_KNOBS:
        raise ValueError(f"{len(keys)} keys are tried; {MAX_KNOBS} are the most")
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is tried twice; give its values once")


def count_points(knobs: Iterable[Knob]) -> int | None:
    """Return the number of points of a grid; None where a knob has a range."""
    sizes = [len(knob.choices) for knob in knobs]
    return math.prod(sizes) if all(sizes) else None


def resolve_key(key: str, options: Collection[str], flags: Collection[str]) -> str:
    """Return the option of a training that a key means.

    Args:
        key: An option in full (``model.optimizer.lr``), its end (``optimizer.lr``), a short flag
            (``lr``), or a field of a network (``growth_rate``, ``output_stride``).
        options: Options of the training in full, of all mappings but ``model.args``.
        flags: Short flags, without dashes.

    Raises:
        ValueError: There is no such option, or several; names the nearest.
    """
    flag = key.replace("_", "-")
    name = flag.replace("-", "_")
    if name in _OF_SWEEP:
        raise ValueError(f"{key} cannot be tried: {_OF_SWEEP[name]}")
    groups = {option.rpartition(".")[0] for option in options}
    if key in options or key in groups:
        return key
    fields = [field.name for field in dataclasses.fields(DenseNetSpec)] + ["tap"]
    if key.startswith("model.args."):
        # Builders take further arguments of other networks: only what is nearly a field is wrong.
        last = key.rpartition(".")[2]
        if last not in fields and (hint := nearest(last, fields)):
            raise ValueError(f"{key}: networks of ours have no {last}{hint}")
        return key
    if flag in flags:
        return flag
    ends = sorted(option for option in (*options, *groups) if option.endswith(f".{key}"))
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(f"{key} may be {' or '.join(ends)}; give it in full")
    if key in fields:
        return f"model.args.{key}" if key in _IN_ARGS else f"model.args.backbone_kwargs.{key}"
    known = (*options, *fields, *flags, *(o.partition(".")[2] for o in options))
    raise ValueError(f"the training has no option {key}{nearest(key, known)}")
