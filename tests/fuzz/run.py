"""Fuzz the readers of untrusted files: ``python tests/fuzz/run.py --minutes 10``.

Needs atheris (``pip install atheris``), which is no dependency of the project. Each reader of
`fuzzed_readers` gets the minutes, one after the other, in a process of bounded memory. An input
that takes too long, too much memory, or ends in an error that is not the project's, ends that
reader's turn; it is kept in the folder of findings, and ``--input FILE`` reads it again.
"""

import argparse
import hashlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SECONDS, MEGABYTES = 20, 3000  # of one input, and of the whole process (torch and Lightning: 900)
RESTART, FULL = 2000, 77
"""Megabytes after which a process ends with that status, and another goes on from its corpus.

atheris 3.0 keeps the result of every comparison that it watches: of arrays, a byte for each value.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="time of each reader")
    parser.add_argument("--reader", action="append", help="name of a reader; all by default")
    place = Path("runs/fuzz")
    parser.add_argument("--folder", type=Path, default=place, help="corpora and findings")
    parser.add_argument("--input", type=Path, help="a finding to read again, of one --reader")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def fuzz_in_child(name: str, options: argparse.Namespace) -> bool:
    """Fuzz one reader in a process of its own, and print a line; True if nothing was found."""
    corpus, findings = options.folder / name, options.folder / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--child", "--reader", name]
    command += ["--folder", str(options.folder)]
    log, code, count, edges = options.folder / f"{name}.log", FULL, 0, 0
    log.unlink(missing_ok=True)
    end = time.monotonic() + 60 * options.minutes
    while code == FULL and (left := end - time.monotonic()) > 0:
        since = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            code = subprocess.run(
                [*command, "--minutes", str(left / 60)],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        text = log.read_bytes()[since:].decode(errors="replace")
        runs = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+)", text)
        if runs:
            count, edges = count + int(runs[-1][0]), max(edges, int(runs[-1][1]))
    clean = code in (0, FULL)
    found = "nothing found" if clean else f"FOUND, see {log}"
    print(f"{name:<10} {count:>9} inputs {edges:>6} edges  {found}", flush=True)
    return clean


def fuzz(name: str, options: argparse.Namespace) -> None:
    """Fuzz one reader in this process; ends it."""
    atheris = importlib.import_module("atheris")  # no dependency of the project

    with atheris.instrument_imports(include=["densenet_backbones", "defusedxml", "yaml"]):
        from fuzzed_readers import READERS, check_reading

    reader, corpus = READERS[name], options.folder / name
    for number, seed in enumerate(reader.seeds()):
        (corpus / f"seed_{number}").write_bytes(seed)
    words = options.folder / f"{name}.dict"
    found = {w for s in reader.seeds() for w in re.findall(rb"[A-Za-z_]{2,30}", s)} or {b"a"}
    words.write_text("".join(f'"{word.decode()}"\n' for word in sorted(found)))
    with tempfile.TemporaryDirectory() as folder:

        def read(data: bytes) -> None:
            try:
                check_reading(reader, data, Path(folder))
            except Exception:  # which libFuzzer, who keeps what is slow or large, does not keep
                number = hashlib.sha256(data).hexdigest()[:12]
                (options.folder / "findings" / f"{name}-{number}").write_bytes(data)
                raise
            if sys.platform == "linux" and getrusage(RUSAGE_SELF).ru_maxrss > RESTART << 10:
                os._exit(FULL)

        arguments = [
            sys.argv[0],
            f"-max_total_time={max(1, round(60 * options.minutes))}",
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEGABYTES}",
            f"-artifact_prefix={options.folder / 'findings'}/{name}-",
            f"-dict={words}",
            "-max_len=65536",
            "-print_final_stats=1",
            str(corpus),
        ]
        atheris.Setup(arguments, read)
        atheris.Fuzz()


def main() -> int:
    options = parse_arguments()
    sys.path.extend(map(str, SUPPORT.glob("**/")))
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if options.child:
        fuzz(options.reader[0], options)
        return 0
    from fuzzed_readers import READERS, check_reading

    names = options.reader or list(READERS)
    if options.input is not None:
        with tempfile.TemporaryDirectory() as folder:
            check_reading(READERS[names[0]], options.input.read_bytes(), Path(folder))
        return 0
    clean = [fuzz_in_child(name, options) for name in names]  # all of them, whatever is found
    return int(not all(clean))


if __name__ == "__main__":
    sys.exit(main())
