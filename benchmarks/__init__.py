"""Measurements that a reader can repeat: speed, quality. What they share is here: options, timing, what they print."""

import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

import rollnumber_04 as gan

ROOT = Path(__file__).resolve().parent.parent
Facts = dict[str, Any]


def machine() -> str:
    """System, kind and number of this machine's cores: "Linux x86_64, 2 cores (AMD EPYC Processor)"."""
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    try:  # where Linux has the name that platform.processor() does not know there
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    named = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    name = re.sub(r"\((R|TM)\)", "", named[1] if named else platform.processor())
    return f"{cores} ({name})" if name else cores


def make_parser(name: str, description: str, device: str = "auto") -> gan.Parser:
    """The command line of a benchmark, with the options that all have."""
    parser = gan.Parser(f"python -m benchmarks.{name}", description.splitlines()[0])
    add = parser.add_argument
    add("--data", type=gan.some_path, metavar="PATH", help="images in any layout; drawn shapes of 32×32 if omitted")
    add("--device", default=device, metavar="NAME", help=f"auto, cpu, cuda, cuda:1 … or mps ({device})")
    add("--out", type=gan.some_path, metavar="FILE", help="write what is found there as JSON")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def call(parser: gan.Parser, measure: Callable[[Any], Facts], text: Callable[[Facts], str], argv: Any = None) -> int:
    """Run a benchmark as a program; returns the exit status.

    `measure` finds facts by the options, `text` says them to people. With "failed" among the facts the status is 1.
    """
    with gan.told(parser.prog) as status:
        options = parser.parse_args(argv)
        if options.out:
            gan.check_writable("--out", options.out.parent)
        options.device = gan.choose_device(options.device)
        torch.set_float32_matmul_precision("high")  # as training does
        facts: Facts = {
            "command": " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)]),
            "device": gan.device_name(options.device),
            "machine": machine(),
            "tool": gan.__version__,
            "torch": str(torch.__version__),
            "date": time.strftime("%Y-%m-%d"),
        }
        with redirect_stdout(sys.stderr):  # the notes; what is printed may be read by a program
            facts |= measure(options)
        written = json.dumps(facts, indent=2, ensure_ascii=False)
        if options.out:
            gan.save_output("--out", options.out, f"{written}\n".encode())
        print(written if options.json else text(facts))
        status[0] = int(bool(facts.get("failed")))
    return status[0]


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """How long a piece of work takes, with what a GPU still has to do of it."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def in_turns(
    loops: dict[str, Callable[[int], Any]], steps: int, rounds: int, warm_up: int, device: torch.device
) -> dict[str, list[float]]:
    """Steps a second of each loop in each round.

    The loops take turns in one process, so that whatever slows the machine slows all of them: their ratio in a round
    tells more than a rate. Before that each is warm: workers started, kernels chosen, steps captured.
    """
    for loop in loops.values():
        loop(warm_up)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            rates[name].append(steps / seconds(lambda loop=loop: loop(steps), device))
    return rates


def middle(values: Sequence[float]) -> tuple[float, list[float]]:
    """The median of some values, and the least and the greatest of them."""
    return statistics.median(values), [min(values), max(values)]
