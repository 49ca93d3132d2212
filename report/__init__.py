"""The experiments behind every comparison that the Readme makes: what is asked, what is run, and what came of it."""

SEED = "-seed-"  # in the names of runs that differ from another in the seed alone; in report.typ, too
GAP = 12  # pixels between the runs' sheets of samples, where `run` puts them side by side and `build` cuts them out
SPECTRA = {  # the files of a run's spectra of samples by its average, and by its last weights: RUN-….csv
    "average": "spectrum",
    "last weights": "spectrum-of-last-weights",
}
