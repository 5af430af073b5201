"""What features are about: label stores, where they come from, and how descriptions are computed (docs/labels.md).

Reading a store and labelling a circuit need no torch; `circuitsae.labels.describing`, which computes descriptions, does.
"""

from circuitsae.labels.records import Context, Description, LabelStore, Mapped, short_label
from circuitsae.labels.sources import label_circuit, open_labels, preset_labels

__all__ = [
    "Context",
    "Description",
    "LabelStore",
    "Mapped",
    "label_circuit",
    "open_labels",
    "preset_labels",
    "short_label",
]
