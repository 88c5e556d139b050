"""Tasks short enough to be timed again and again."""

from ml_collections import ConfigDict


def shorten(config: ConfigDict, steps: int) -> ConfigDict:
    """Shortens the tasks of all cases to so many updates, as nearly as epochs allow.

    Only the first two examples of a task are measured, and no ranks, so that the
    updates are what is timed.

    Args:
      config: a run's config, complete; it is left as it is.
      steps: updates of a lane in a task.
    """
    short = ConfigDict(config.to_dict())
    for case in short.cases.values():
        batch_size = case.get("batch_size", config.batch_size)
        if "num_epochs" in config:
            train_per_class = case.get("train_per_class", config.train_per_class)
            batches = 2 * train_per_class / batch_size
            case.num_epochs = max(1, round(steps / batches))
        else:
            case.examples_per_task = steps * batch_size
    # Batch normalization cannot be measured on a single example.
    for field, value in (("measured_examples", 2), ("rank_every", 0)):
        short[field] = value
        for case in short.cases.values():
            if field in case:
                case[field] = value
    short.replacement_log = 0
    return short
