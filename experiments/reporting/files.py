"""The files that reporting writes into a run folder, and those it reads there."""

RESULTS_FILE = "results.nc"
REPLACEMENTS_FILE = "replacements.csv"

FIGURES_FOLDER = "figures"
LEARNING_FIGURE = "learning.png"
BINS_FIGURE = "bins.png"
SURVIVAL_FIGURE = "survival.png"
FIGURE_FILES = (LEARNING_FIGURE, BINS_FIGURE, SURVIVAL_FIGURE)
"""All that `plots.draw_run` can write there; `--overwrite` deletes them with a run."""

COMPARISON_FOLDER = "comparison"
COMPARISON_FILES = (
    *("comparison.md", "comparison.csv", "trials.csv"),
    *("differences.png", "curves.png"),
)
"""All that `experiments.compare` writes there."""
