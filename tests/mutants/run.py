"""Mutation testing: ``python tests/mutants/run.py heads/multibox/matching.py --sample 60``.

Changes one operator or number of a module at a time, and runs the tests that stand for it: first
``test_MODULE.py`` of its room, then the whole room. A mutant that every test passes has survived.
No file is written: each mutant lives in a fork, whose import of the module is the changed one.
What a test starts as a process of its own sees the module unchanged. Needs Linux.
"""

import argparse
import ast
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

PROJECT = Path(__file__).resolve().parents[2]
# Imported once for all mutants: what takes seconds, and nothing of the project.
PRELOADED = "torch torchvision timm numpy cv2 scipy.optimize PIL.Image pytest hypothesis yaml"
PRELOADED += " lightning.pytorch torchmetrics pycocotools.cocoeval faster_coco_eval"
PAIRS: tuple[tuple[type[ast.AST], type[ast.AST]], ...] = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot)),
    *((ast.In, ast.NotIn), (ast.And, ast.Or), (ast.BitAnd, ast.BitOr)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div)),
)
SWAPPED = dict(PAIRS) | {second: first for first, second in PAIRS}
SWAPPED |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
# Not code that computes: messages of errors, annotations, docstrings.
SKIPPED = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.arg)


def list_changes(tree: ast.AST) -> Iterator[tuple[ast.expr, Callable[[], None]]]:
    """List each expression that can be changed, and what changes it."""
    for field, value in ast.iter_fields(tree):
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or field in ("annotation", "returns"):
                continue
            if isinstance(node, SKIPPED):
                continue
            if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
                yield node, lambda node=node: node.ops.__setitem__(0, swap(node.ops[0]))
            elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPPED:
                yield node, lambda node=node: setattr(node, "op", swap(node.op))
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                # `not not x` is what `x` is as a condition
                yield node, lambda node=node: setattr(node, "operand", negate(node.operand))
            elif isinstance(node, ast.Constant) and type(node.value) is bool:
                yield node, lambda node=node: setattr(node, "value", not node.value)
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                yield node, lambda node=node: setattr(node, "value", node.value + 1)
            yield from list_changes(node)


def swap(operator: ast.AST) -> ast.AST:
    return SWAPPED[type(operator)]()


def negate(operand: ast.expr) -> ast.UnaryOp:
    return ast.UnaryOp(ast.Not(), operand)


def mutate(source: str, index: int) -> tuple[CodeType, str]:
    """Compile a source with one expression changed; and a line that tells the change."""
    tree = ast.parse(source)
    node, change = list(list_changes(tree))[index]
    before = ast.unparse(node)
    change()
    code = compile(ast.fix_missing_locations(tree), "mutant", "exec")
    return code, f"{node.lineno}: {before} -> {ast.unparse(node)}"


def import_changed(module: Path, code: CodeType) -> None:
    """Let every import of a file in this process run other code."""
    unchanged = SourceFileLoader.get_code

    def get_code(loader: SourceFileLoader, name: str) -> CodeType | None:
        is_it = Path(loader.get_filename(name)).resolve() == module
        return code if is_it else unchanged(loader, name)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def run_tests(module: Path, code: CodeType | None, tests: Path, seconds: int) -> tuple[int, float]:
    """Run tests in a fork; their exit code, -1 where they took too long, and CPU seconds."""
    child = os.fork()
    if not child:
        # An endless loop is ended by its CPU time, one that waits by the clock.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        signal.alarm(20 * seconds)
        if code:
            import_changed(module, code)
        with tempfile.TemporaryFile() as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            pytest = importlib.import_module("pytest")
            arguments = ["-x", "-q", "-p", "no:cacheprovider", str(tests)]
            os._exit(int(pytest.main(arguments)))
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    code_of_exit = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    spent = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    return max(code_of_exit, -1), spent


def list_tests(module: Path) -> list[Path]:
    """List what tests a module: the file of its name, if there is one, and its whole room."""
    room = module.relative_to(PROJECT).parent
    parts = room.parts[1:] if room.parts[0] == "densenet_backbones" else room.parts
    folder = PROJECT.joinpath("tests", *parts)
    own = folder / f"test_{module.stem}.py"
    return [tests for tests in (own, folder) if tests.exists()]


def try_mutants(module: Path, options: argparse.Namespace) -> int:
    """Try the mutants of a module, and print what became of each; the number of survivors."""
    source, suites = module.read_text(), options.tests or list_tests(module)
    baseline = [run_tests(module, None, tests, 600) for tests in suites]
    if any(code for code, _ in baseline):
        raise SystemExit(f"{module}: the tests fail without a change: {suites}")
    places = [node.lineno for node, _ in list_changes(ast.parse(source))]
    chosen = [i for i, line in enumerate(places) if not options.lines or line in options.lines]
    if options.sample and options.sample < len(chosen):
        generator = random.Random(f"{options.seed} {module.name}")
        chosen = sorted(generator.sample(chosen, options.sample))
    survived = 0
    for index in chosen:
        code, change = mutate(source, index)
        for tests, (_, seconds) in zip(suites, baseline, strict=True):
            outcome, _ = run_tests(module, code, tests, 30 + 3 * int(seconds))
            if outcome:
                break
        word = {0: "SURVIVED", -1: "timeout"}.get(outcome, "killed")
        survived += not outcome
        print(f"{word:<9} {module.relative_to(PROJECT)}:{change}", flush=True)
    print(f"{module.relative_to(PROJECT)}: {survived} of {len(chosen)} survived", flush=True)
    return survived


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", type=Path, nargs="+", help="files of the project")
    parser.add_argument("--sample", type=int, help="mutants of each module; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="+", help="mutants of these lines alone")
    parser.add_argument("--tests", type=Path, action="append", help="instead of the room's")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has none of its parent's threads
    sys.path[:0] = [str(PROJECT)]
    for name in PRELOADED.split():
        importlib.import_module(name)
    sys.exit(bool(sum(try_mutants(path.resolve(), options) for path in options.modules)))
