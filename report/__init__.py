"""The experiments behind every comparison that the Readme makes: what is asked, what is run, and what came of it."""

SEED = (
    "-seed-"  # stands in the names of an experiment's runs that differ from another in the seed alone, report.typ too
)
GAP = 12  # pixels between the runs' sheets of samples, where `run` puts them side by side and `build` cuts them out
