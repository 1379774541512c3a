"""Check claims: gather what they need, evaluate the relation, then ask whether anything was learnt, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrate.planning.claims import Claim
from reports.control import uninformative
from reports.records import Result, Table
from reports.verdicts.evidence import CITED, gather
from reports.verdicts.floors import doubt
from reports.verdicts.outcomes import (
    FAILS,
    NOT_RUN,
    NOTHING,
    OUTCOMES,
    UNDECIDABLE,
    CheckedClaim,
    Outcome,
)
from reports.verdicts.relations import EVALUATORS, compared


def check_claims(table: Table) -> tuple[CheckedClaim, ...]:
    """Every claim of the table's experiment, in the ledger's order."""
    results = {result.cell.key: result for result in table.results}
    return tuple(check_claim(claim, results, table) for claim in table.experiment.claims)


def tally(tables: Iterable[Table]) -> dict[Outcome, int]:
    """How many of the tables' claims have each outcome; the sum is how many were checked."""
    found = Counter(claim.outcome for table in tables for claim in check_claims(table))
    return {outcome: found[outcome] for outcome in OUTCOMES}


def check_claim(claim: Claim, results: Mapping[str, Result], table: Table) -> CheckedClaim:
    """Check the claim against `results`, cell key -> result, all of `table`, as the package's docstring defines it."""
    evidence = gather(claim, results, table)
    outcome, reason = EVALUATORS[type(claim.relation)](claim.relation, evidence)
    if outcome != NOT_RUN and (why := uninformative(table)):
        outcome, reason = UNDECIDABLE, f"{why}: {reason}"
    elif outcome != NOT_RUN:
        doubts = [one for group in compared(claim.relation) if (one := doubt(group, evidence))]
        if doubts:
            doubted, why = min(doubts, key=lambda one: one[0] != NOTHING)
            outcome = doubted if doubted == NOTHING or outcome != UNDECIDABLE else outcome
            reason = f"{why}: {reason}"
    missing = evidence.missing
    if missing and outcome != FAILS:
        reasons = dict.fromkeys(missing.values())
        keys = {why: ", ".join(key for key in missing if missing[key] == why) for why in reasons}
        named = "missing: " + "; ".join(f"{keys[why]} ({why})" for why in reasons)
        so_far = "" if outcome == UNDECIDABLE else "so far "
        reason = f"{so_far}{reason}; {named}" if reason else named
        if outcome != UNDECIDABLE:
            outcome = UNDECIDABLE if CITED in reasons else NOT_RUN
    note = f"; {claim.note}" if claim.note else ""
    return CheckedClaim(claim, outcome, f"{reason}{note}.")
