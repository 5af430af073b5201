"""Scans: many interventions as one table, and the pictures of it.

What the HookedSAETransformer notebook shows: the effect of ablating each feature, attribution against ablation, which
features are active where; and how far a prediction holds as a feature is scaled.
"""

from collections.abc import Sequence

from circuitsae.scans.ablating import AblationScan, Agreement, scan_ablation
from circuitsae.scans.activity import ActivityScan, scan_activity
from circuitsae.scans.steering import SteeringCurve, scan_scales

__all__: Sequence[str] = [
    "AblationScan",
    "ActivityScan",
    "Agreement",
    "SteeringCurve",
    "scan_ablation",
    "scan_activity",
    "scan_scales",
]
