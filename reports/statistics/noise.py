"""The noise of measured numbers: what other seeds and other validation images would change. It knows no claims.

A number varies for two reasons. Seeds: other weights to start from, another order, other crops. Images: the validation
set is a sample. The noise of a sum of cells with weights (a difference: 1 and -1) is a 95 % half-width:

- Seeds: variance between seeds over the number of seeds, times Student's quantile. The variance is pooled over all cells
  of one kind (stage, metric, data set) at the scale that have two or more seeds; cells with the same seeds are paired, so
  that what a seed adds to all of them drops out. With less than ENOUGH degrees of freedom, all percentages of the scale
  are pooled, and the larger of the two variances counts. From MANY seeds on, a difference has its own variance.
- Images: the binomial variance of a percentage; of AP that of a bootstrap over images. Where it is known which images
  each cell has right, the variance of their sum is taken image by image: what is hard for all cells drops out of a
  difference. With several seeds the noise is never less than this part alone; with one seed the two are added (as
  variances).
- A store without a cell of two seeds uses the spread that the scale records, with its source. Without one, the noise is
  unknown.
- Time and memory: the spread of their own seeds; none for one seed. Counted and cited numbers have no noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from reports.statistics import student

LEVEL = 0.025  # on each side: 95 % half-widths
POWER = 0.8
ENOUGH = 4  # degrees of freedom of a kind, below which the whole scale is pooled
MANY = 6  # seeds
MOST_SEEDS = 1000
NORMAL = 1.959964
UNKNOWN_SPREAD = "one seed, and the spread between seeds is unknown at this scale"
UNKNOWN_IMAGES = "its noise on the validation images is unknown"
Terms = Sequence[tuple[float, "Sample"]]


@dataclass(frozen=True)
class Sample:
    """A cell's numbers, one for each of `seeds`.

    `images`: variance of their mean by the choice of validation images; None: unknown. `kind`: `linear.top1 imagenet1k`;
    cells of one kind share the spread between seeds. `nature`: a score, something that a machine measured, or exact.
    `right`: for each validation image, the percentage of seeds that have it right; None: unknown. `data`: fingerprint of
    the images; cells with the same one were measured on the same images.
    """

    values: tuple[float, ...]
    seeds: tuple[object, ...] = (0,)
    images: float | None = None
    kind: str = ""
    percent: bool = True
    nature: Literal["score", "machine", "exact"] = "score"
    right: np.ndarray | None = field(default=None, compare=False, repr=False)
    data: str = ""

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def n(self) -> int:
        return len(self.values)


class Variance(NamedTuple):
    """Between seeds, for one run. `df`: degrees of freedom; `source`: of a recorded one, else empty."""

    value: float
    df: float
    source: str = ""


class Squares(NamedTuple):
    """A sum of squares and its degrees of freedom."""

    total: float = 0.0
    df: int = 0


@dataclass(frozen=True)
class Recorded:
    """A spread that a scale's file records: standard deviation between seeds of the kinds that begin with `kind`."""

    kind: str
    sd: float
    df: float
    source: str


@dataclass(frozen=True)
class Pool:
    """What a scale's cells say about the variance between seeds, by kind: `within` cells; `paired`: beyond what a seed adds
    to all cells with the same seeds."""

    within: Mapping[str, Squares] = field(default_factory=dict)
    paired: Mapping[str, Squares] = field(default_factory=dict)
    percent: frozenset[str] = frozenset()
    recorded: tuple[Recorded, ...] = ()

    def variance(self, kind: str, paired: bool) -> Variance | None:
        """Of one run of that kind, if it is known."""
        squares = self.paired if paired and self.paired.get(kind, Squares()).df else self.within
        own = squares.get(kind, Squares())
        measured = Variance(own.total / own.df, own.df) if own.df else None
        if own.df < ENOUGH and kind in self.percent:
            every = [squares[name] for name in squares if name in self.percent]
            if df := sum(part.df for part in every):
                value = sum(part.total for part in every) / df
                measured = Variance(max(value, measured.value if measured else 0.0), df)
        noted = next((Variance(r.sd**2, r.df, r.source) for r in self.recorded if kind.startswith(r.kind)), None)
        if measured and noted:
            return max(measured, noted, key=lambda variance: variance.df)
        return measured or noted


def pool(samples: Iterable[Sample], recorded: tuple[Recorded, ...] = ()) -> Pool:
    """The pool of all scores; each training must be among the samples once."""
    scores = [sample for sample in samples if sample.nature == "score"]
    within: dict[str, Squares] = {}
    groups: dict[tuple[str, tuple[object, ...]], list[tuple[float, ...]]] = {}
    for sample in scores:
        if sample.n > 1:
            spread = float(np.var(sample.values)) * sample.n
            within[sample.kind] = _add(within.get(sample.kind), spread, sample.n - 1)
            groups.setdefault((sample.kind, sample.seeds), []).append(sample.values)
    paired: dict[str, Squares] = {}
    for (kind, seeds), rows in groups.items():
        if len(rows) > 1:
            values = np.array(rows)
            rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
            paired[kind] = _add(paired.get(kind), float((rest**2).sum()), (len(rows) - 1) * (len(seeds) - 1))
    return Pool(within, paired, frozenset(sample.kind for sample in scores if sample.percent), recorded)


def _add(squares: Squares | None, total: float, df: int) -> Squares:
    squares = squares or Squares()
    return Squares(squares.total + total, squares.df + df)


@dataclass(frozen=True)
class Estimate:
    """A weighted sum of cells. `seeds_se`, `images_se`: standard errors by seeds and by images; `n`: the fewest seeds of a
    cell; `spread`: standard deviation between seeds of one run; `unknown`: why the noise is unknown, or empty."""

    value: float
    seeds_se: float = 0.0
    images_se: float = 0.0
    df: float = math.inf
    n: int = 1
    paired: bool = False
    spread: float = 0.0
    source: str = ""
    unknown: str = ""

    def width(self, level: float = LEVEL) -> float:
        """The half-width that is exceeded on one side with probability `level` if the true value is zero."""
        return _width(self.seeds_se, self.images_se, self.df, self.n, level)

    def images_width(self, level: float = LEVEL) -> float:
        """As `width`, of the choice of validation images alone: what the same networks would have on other images."""
        return student.quantile(level, math.inf) * self.images_se

    def above(self, limit: float = 0.0) -> float:
        """The probability of so large a value, or a larger one, if the true value is `limit`; 0 or 1 without noise."""
        return self._tail(self.value - limit)

    def below(self, limit: float = 0.0) -> float:
        """The probability of so small a value, or a smaller one, if the true value is `limit`."""
        return self._tail(limit - self.value)

    def _tail(self, excess: float) -> float:
        if not self.seeds_se and not self.images_se:
            return 0.0 if excess > 0 else 1.0
        if self.n == 1:
            return student.tail(excess / math.hypot(self.seeds_se, self.images_se), self.df)
        tails = [student.tail(excess / self.seeds_se, self.df)] if self.seeds_se else []
        tails += [student.tail(excess / self.images_se, math.inf)] if self.images_se else []
        return max(tails)

    def detectable(self, power: float = POWER) -> float:
        """The difference that such a measurement shows with that probability, on the same validation images."""
        return _detectable(self.seeds_se, self.images_se, self.df, self.n, power)

    def power(self, true: float) -> float:
        """The probability that such a measurement shows a true value, positive, on the same validation images."""
        if not self.seeds_se:
            return float(true > self.width())
        return student.tail((self.width() - true) / self.seeds_se, self.df)

    def seeds_for(self, true: float) -> int | None:
        """How many seeds show that value with probability POWER; None: no number does, the images are too few."""
        one, low, high = self.seeds_se * math.sqrt(self.n), 0, MOST_SEEDS + 1

        def enough(n: int) -> bool:
            df = self.df + max(0, n - self.n)
            return _detectable(one / math.sqrt(n), self.images_se, df, n, POWER) <= abs(true)

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high if high <= MOST_SEEDS else None

    @property
    def basis(self) -> str:
        """What the noise is based on, in words."""
        if not self.seeds_se:
            return ""
        count = "1 seed" if self.n == 1 else f"{self.n} seeds{', paired' if self.paired else ''}"
        origin = f"as recorded: {self.source}" if self.source else f"{self.df:.0f} degrees of freedom"
        return f"{count}; spread between seeds {self.spread:.2g}, {origin}"


def _width(seeds_se: float, images_se: float, df: float, n: int, level: float) -> float:
    if n == 1:
        return student.quantile(level, df) * math.hypot(seeds_se, images_se)
    return max(student.quantile(level, df) * seeds_se, student.quantile(level, math.inf) * images_se)


def _detectable(seeds_se: float, images_se: float, df: float, n: int, power: float) -> float:
    return _width(seeds_se, images_se, df, n, LEVEL) + student.quantile(1 - power, df) * seeds_se


def estimate(terms: Terms, pooled: Pool) -> Estimate:
    """The sum of weight times cell, over `terms`, with its noise."""
    value = math.fsum(weight * sample.mean for weight, sample in terms)
    noisy = [(weight, sample) for weight, sample in terms if sample.nature != "exact"]
    if not noisy:
        return Estimate(value)
    n = min(sample.n for _, sample in noisy)
    same = n > 1 and len({sample.seeds for _, sample in noisy}) == 1
    if any(sample.nature == "machine" for _, sample in noisy):
        return _of_own_seeds(value, noisy, n, same)
    if any(sample.images is None for _, sample in noisy):
        return Estimate(value, n=n, unknown=UNKNOWN_IMAGES)
    images = math.sqrt(_images_variance(noisy))
    # What a seed adds to every cell drops out only if the weights sum to zero.
    paired = len({sample.seeds for _, sample in noisy}) == 1 and abs(sum(weight for weight, _ in noisy)) < 1e-9
    if n >= MANY and paired:
        own = _of_own_seeds(value, noisy, n, same)
        return Estimate(value, own.seeds_se, images, own.df, n, True, own.spread)
    parts: dict[str, float] = {}
    variances: dict[str, Variance] = {}
    for weight, sample in noisy:
        if (variance := pooled.variance(sample.kind, paired)) is None:
            return Estimate(value, n=n, unknown=UNKNOWN_SPREAD)
        variances[sample.kind] = variance
        parts[sample.kind] = parts.get(sample.kind, 0.0) + weight**2 * variance.value / sample.n
    total = sum(parts.values())
    # Satterthwaite's degrees of freedom, if the cells are of several kinds.
    df = total**2 / sum(part**2 / variances[kind].df for kind, part in parts.items()) if total else math.inf
    spread = math.sqrt(max(variance.value for variance in variances.values()))
    source = "; ".join(dict.fromkeys(variance.source for variance in variances.values() if variance.source))
    return Estimate(value, math.sqrt(total), images, df, n, paired, spread, source)


def _images_variance(terms: Terms) -> float:
    """Of the weighted sum, by the choice of validation images. Cells on other images are independent."""
    shared: dict[tuple[str, int], list[np.ndarray]] = {}
    alone = 0.0
    for weight, sample in terms:
        if sample.right is None or not sample.data:
            alone += weight**2 * (sample.images or 0.0)
        else:
            shared.setdefault((sample.data, len(sample.right)), []).append(weight * sample.right)
    return alone + math.fsum(float(np.var(np.sum(parts, axis=0))) / count for (_, count), parts in shared.items())


def _of_own_seeds(value: float, terms: Terms, n: int, same: bool) -> Estimate:
    """By the spread of these cells' own seeds: of their sum if they have the same seeds, else of each; none for one seed."""
    if same:
        sums = sum(weight * np.array(sample.values) for weight, sample in terms)
        sd = float(np.std(sums, ddof=1))
        return Estimate(value, sd / math.sqrt(n), 0.0, n - 1, n, True, sd)
    parts = [
        (weight**2 * float(np.var(sample.values, ddof=1)) / sample.n, sample.n - 1)
        for weight, sample in terms
        if sample.n > 1
    ]
    total = sum(part for part, _ in parts)
    df = total**2 / sum(part**2 / df for part, df in parts) if total else math.inf
    return Estimate(value, math.sqrt(total), 0.0, df, n, False, math.sqrt(total * n))


def holm(probabilities: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several tests succeed so that the probability of any false success is at most `level` (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=lambda index: probabilities[index])
    found = [False] * len(probabilities)
    for rank, index in enumerate(order):
        if probabilities[index] > level / (len(order) - rank):
            break
        found[index] = True
    return found
