"""What a claim is checked against: its cells' values, what this scale cannot compare, and comparisons of two values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrate.planning.claims import Claim
from orchestrate.planning.scale_notes import scale_notes
from reports.formatting import PLUS_MINUS, number, places
from reports.records import Job, Result, Table
from reports.statistics.mcnemar import mcnemar
from reports.statistics.noise import Estimate, Sample, estimate
from reports.verdicts.outcomes import FAILS, HOLDS, NOISE, UNDECIDABLE, Outcome
from reports.verdicts.samples import sample

TINY = 1e-9  # rounding of decimal numbers in binary: 66.4 - 63.8 is not exactly 2.6
CITED = "cited from another paper: compared at scale paper only"
STRIDE = 32  # pixels of the input for each cell of a ResNet's last map


class Value(NamedTuple):
    """A cell's number in a claim. `places`: decimals to show; `bar`: why nothing can be compared with it here, or empty."""

    key: str
    value: float
    sample: Sample
    places: int
    bar: str = ""

    def __str__(self) -> str:
        return f"{self.key} ({number(self.value, self.places)})"


class Comparison(NamedTuple):
    """First less second. `estimate`: with its noise; `words`: the numbers; `basis`: what the noise is based on, in words."""

    outcome: Outcome
    estimate: Estimate
    words: str
    basis: str = ""


@dataclass(frozen=True)
class Evidence:
    """`values`: of the claim's cells that have one; `results`: of every cell that it may name; `missing`: why each of the
    others has none."""

    values: dict[str, Value]
    missing: dict[str, str]
    results: Mapping[str, Result]
    table: Table

    def compare(self, more: Value, less: Value) -> Comparison:
        """Whether `more` exceeds `less`."""
        found = self.sum([(1.0, more), (-1.0, less)])
        difference, digits = found.value, max(more.places, less.places)
        apart, both = number(abs(difference), digits), found.width() if not found.unknown else 0.0
        if found.unknown:
            side = "above" if difference > 0 else "below"
            return Comparison(UNDECIDABLE, found, f"{more} is {side} {less} by {apart}, but {found.unknown}")
        basis = "; ".join(filter(None, (found.basis, self.checkpoints(more, less))))
        if abs(difference) <= both + TINY:
            words = f"{more} and {less} differ by {apart}, within the noise of {number(both, digits)}"
            return Comparison(NOISE, found, words if both else f"{more} equals {less}", basis)
        if not both and abs(difference) < 0.5 * 10**-digits:  # without any noise, such as one run's time
            return Comparison(NOISE, found, f"{more} and {less} are equal in the digits shown")
        around = f", noise {PLUS_MINUS}{number(both, digits)}" if both else ""
        words = f"{more} is {'above' if difference > 0 else 'below'} {less} by {apart}{around}"
        return Comparison(HOLDS if difference > 0 else FAILS, found, words, basis)

    def sum(self, terms: Sequence[tuple[float, Value]]) -> Estimate:
        """The weighted sum; unknown also if one of the cells, or the comparison of two, is barred at this scale."""
        found = estimate([(weight, value.sample) for weight, value in terms], self.table.pool)
        bar = next((value.bar for _, value in terms if value.bar), "") or self.barred(v.key for _, v in terms)
        return Estimate(found.value, n=found.n, unknown=bar) if bar else found

    def barred(self, keys: Iterable[str]) -> str:
        """Why the scale says that these cells cannot be compared; "" if it does not."""
        mine, name = set(keys), self.table.experiment.name
        barred = scale_notes(self.table.scale).undecidable.get(name, ()) if not self.table.comparable else ()
        return next((one.why for one in barred if len(mine & set(one.cells)) > 1), "")

    def checkpoints(self, first: Value, second: Value) -> str:
        """McNemar's test between the first seeds' checkpoints, in words; "" without per-image bits of the same images."""
        jobs = [self.results[value.key].jobs[:1] for value in (first, second)]
        pair = [one[0] for one in jobs if one and one[0].correct]
        if len(pair) < 2 or pair[0].fingerprint != pair[1].fingerprint or pair[0].seed != pair[1].seed:
            return ""
        counts = {int(job.metrics.get("result.val_images") or 0) for job in pair}
        found = mcnemar(pair[0].correct, pair[1].correct, counts.pop()) if len(counts) == 1 else None
        if found is None:
            return ""
        return (
            f"these two checkpoints (seed {pair[0].seed}) only: {found.first} images are right in {first.key} alone, "
            f"{found.second} in {second.key} alone, McNemar's p {found.p:.2g}"
        )


def gather(claim: Claim, results: Mapping[str, Result], table: Table) -> Evidence:
    """The claim's cells that have a number, and why each of the others has none."""
    values: dict[str, Value] = {}
    missing: dict[str, str] = {}
    for key in claim.cells:
        result = results.get(key) or table.elsewhere.get(key)
        if result is None:
            missing[key] = "not run"
        elif result.cell.cited is not None and not table.comparable:
            missing[key] = CITED
        elif value := value_of(key, result, table):
            values[key] = value
        else:
            missing[key] = result.lacking
    return Evidence(values, missing, {**table.elsewhere, **results}, table)


def value_of(key: str, result: Result, table: Table) -> Value | None:
    """The cell's number, measured or cited; None if it has none."""
    if result.cell.cited is not None and result.cell.printed is not None:
        return Value(key, result.cell.printed, Sample((result.cell.printed,), nature="exact"), places(table, result))
    found = sample(result, table.unit(result.cell))
    if found is None or result.value is None:
        return None
    bar = too_small_a_map(result) if found.nature == "score" else ""
    return Value(key, result.value, found, places(table, result), bar)


def too_small_a_map(result: Result) -> str:
    """Why a montage's patches cannot be distinguished: the feature map has fewer cells than patches; "" if it has enough."""
    encoder = next((job for chain in result.chains for job in chain if job.stage == "pretrain"), None)
    if encoder is None or not _montages(encoder):
        return ""
    size, m = (int(encoder.params.get(key) or 0) for key in ("image_size", "method.m"))
    side = math.ceil(size / STRIDE)
    if not size or m <= side:
        return ""
    return f"the {side} x {side} feature map of {size}-pixel images has fewer cells than the {m} x {m} patches of {result.cell.key}"


def _montages(job: Job) -> bool:
    return job.params.get("method.name") == "jigclu" and job.params.get("method.input", "montage") == "montage"


def same_jobs(evidence: Evidence, first: Iterable[str], second: Iterable[str]) -> bool:
    """Whether the same jobs fill both groups of cells."""
    groups = [[[job.job for job in evidence.results[key].jobs] for key in keys] for keys in (first, second)]
    return groups[0] == groups[1] and any(groups[0])
