"""Rule of a look-up in a table: of params, such as an embedding, or of activations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cbp_jax._discovery import labels as labels_lib
from cbp_jax._discovery.products import kernel_of, mix, new_units
from cbp_jax._discovery.values import Record, Value


def gather(
    record: Record, params: dict[str, Any], operands: Sequence[Value], new: Value
) -> Value:
    """Follows `lax.gather`: a look-up in a table of params, or of activations."""
    operand = operands[0]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(operand.shape)) if axis not in dropped]
    whole = {axis for axis in kept if sizes[axis] == operand.shape[axis]}
    new_axes = dict(zip(kept, numbers.offset_dims, strict=True))

    def moved(labels: np.ndarray) -> np.ndarray:
        result = np.ones(len(new.shape), int)
        for axis in kept:
            result[new_axes[axis]] = labels.shape[axis] if axis in whole else 1
        return labels.reshape(result)

    if operand.entries and not operand.is_data:
        table = kernel_of(operand, ())
        axes = [
            axis
            for axis, labels in enumerate(table.coordinates if table else ())
            if labels_lib.varying(labels) and labels_lib.varying(labels) <= whole
        ]
        if not axes:
            reason = "it is looked up in a way that infer_units does not know"
            record.puzzle(operand.entries, reason)
            return new
        return new_units(record, table, axes, moved, new, operand)
    if operand.units is None:
        return new
    if labels_lib.varying(operand.units) <= whole:
        return new._replace(units=moved(operand.units))
    return mix(record, new, operand)
