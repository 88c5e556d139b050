"""Names of the files that reporting reads and writes in a run folder."""

RESULTS_FILE = "results.nc"
REPLACEMENTS_FILE = "replacements.csv"

FIGURES_FOLDER = "figures"
LEARNING_FIGURE = "learning.png"
BINS_FIGURE = "bins.png"
LAST_PHASE_FIGURE = "last_phase.png"
SURVIVAL_FIGURE = "survival.png"
FIGURE_FILES = (LEARNING_FIGURE, BINS_FIGURE, LAST_PHASE_FIGURE, SURVIVAL_FIGURE)
"""The files that `plots.draw_run` can write; `--overwrite` deletes them with a run."""

COMPARISON_FOLDER = "comparison"
COMPARISON_FILES = (
    *("comparison.md", "comparison.csv", "trials.csv"),
    *("differences.png", "curves.png"),
)
"""The files that `experiments.compare` writes."""
SEARCH_FILES = ("tuning.csv", "tuning.png", "sensitivity.png")
"""The files that it also writes of a search."""
EVALUATION_FOLDER = "evaluation"
"""The run folder of the evaluation of a search, inside that of the search."""

FORETELLING_FOLDER = "foretelling"
FORETELLING_FILES = ("foretelling.md", "foretelling.csv", "foretelling.png")
"""The files that `experiments.foretell` writes."""
