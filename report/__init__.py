"""The experiments behind every comparison that the Readme makes: what is asked, what is run, and what came of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project, where the experiments' paths begin
SEED = "-seed-"  # in the names of runs that differ from another in the seed alone; in report.typ, too
GAP = 12  # pixels between the runs' sheets of samples, where `run` puts them side by side and `build` cuts them out
