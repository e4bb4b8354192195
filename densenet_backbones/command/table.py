"""Table of the commands of ``densenet``; nothing is imported before one is called."""

from dataclasses import dataclass

__all__ = ["COMMANDS", "PROGRAM", "Command"]

PROGRAM = "densenet"


@dataclass(frozen=True)
class Command:
    """A command of ``densenet``.

    Attributes:
        help: Purpose, a line of `densenet --help`.
        entry: Function that takes the words after the command's name, as ``module:function`` below
            the package. Its module has a `make_parser`, from which words are completed.
    """

    help: str
    entry: str


COMMANDS = {
    "train": Command("train a detector, segmenter or classifier", "command.training:train"),
    "evaluate": Command("evaluate a trained model on annotated data", "training.evaluate:main"),
    "predict": Command("draw what a model finds in images", "inference.predict:main"),
    "inspect": Command("look at a data set, convert it or clean it", "inspection.command:main"),
    "export": Command("write a model as an ONNX file", "export.export:main"),
    "sweep": Command("find which values of a training's options pay", "tuning.command:main"),
    "compare": Command("compare runs: options, results, costs", "comparison.command:main"),
    "heatmap": Command("draw which layer uses the maps of which", "anatomy.heatmap:main"),
    "prune": Command("take out what a net uses least, and tune it", "anatomy.prune:main"),
    "report": Command("report on a model: fields, costs, memory, priors", "anatomy.report:main"),
    "demo": Command("show what a model finds on a page in the browser", "demo.command:main"),
    "push": Command("send a model to the Hugging Face Hub", "sharing.push:main"),
    "benchmark": Command("measure backbones and training beside peers", "benchmark.command:main"),
    "list": Command("list configs, backbones and models", "command.listing:main"),
    "completion": Command("print a shell's completion of words", "command.completion:main"),
}
"""Name -> command, in the order of the help."""

FOREIGN = {
    "detect": "predict",
    "segment": "predict",
    "infer": "predict",
    "inference": "predict",
    "val": "evaluate",
    "validate": "evaluate",
    "test": "evaluate",
    "fit": "train",
    "convert": "inspect",
    "check": "inspect",
    "serve": "demo",
    "upload": "push",
}
"""Names of other tools' commands -> ours."""
