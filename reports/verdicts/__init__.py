"""Measured numbers against the paper's: a verdict on a cell, and whether a claim holds.

Noise (reports/statistics/noise.py) is a 95 % half-width that covers other seeds and other validation images.

A cell gets a verdict if it was run at the paper's settings (scale `paper`, no override): `reproduced` if it is within a
margin of the printed value (1 point, 0.5 AP), else `off by` the difference. The noise is shown beside it and never widens
the margin. Hours, megabytes and counts get no verdict.

The outcomes of a claim:

- `holds`, `fails`: the numbers show it, or contradict it, beyond the noise. If a claim has several pairs, all must show it
  for `holds`; for `fails` one suffices, at Holm's level over the claim's pairs. Cells that contradict it make it fail even
  if others are missing.
- `within the noise`: of the difference, with the difference that such a measurement would show in 4 of 5 repeats, and the
  seeds that the measured difference would take; or of the best cell's gain over the table's random weights (one-sided, 5 %).
- `not run`: a cell that it needs has no number.
- `not decidable here`: the noise is unknown (one seed at a scale of unknown spread, AP without a bootstrap); an absolute
  number, or one that the paper cites, on other data; a feature map with fewer cells than patches; what the scale's file
  lists as `undecidable`; times of different devices; a series that does not arrive.
- `nothing learnt`: the best of its cells does not exceed the table's random weights by more than the choice of validation
  images explains.

The relations:

- order, best, difference: one cell must exceed the other. difference with `by`: at the paper's settings the difference
  must also not be below `by` beyond the noise; elsewhere only its sign counts.
- within: the difference must be inside the margin by the noise to hold, and outside by the noise to fail.
- gap: a difference of differences.
- ratio: checked at every scale; of times only if both were measured on one kind of device without waiting for data.
- reaches: fails if a cell before `at` exceeds the target; holds only if all of them are below it and a later one arrives.
- below: an absolute number, so it is checked only at the paper's settings.
"""

from reports.verdicts.cells import cell_noise, legend, verdict, with_noise
from reports.verdicts.claims import check_claim, check_claims, tally
from reports.verdicts.outcomes import MEANING, OUTCOMES, CheckedClaim, Outcome, css_class
from reports.verdicts.samples import scale_pool

__all__ = [
    "MEANING",
    "OUTCOMES",
    "CheckedClaim",
    "Outcome",
    "cell_noise",
    "check_claim",
    "check_claims",
    "css_class",
    "legend",
    "scale_pool",
    "tally",
    "verdict",
    "with_noise",
]
