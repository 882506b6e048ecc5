"""How far a predicted peak may be off, from measurements or by assumption. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from moco_accel.recipe.constants import ASSUMED_PEAK_ERROR, encoder_family
from planner.cards.card import Card
from planner.evidence.records import Rows

_MIN_MEASUREMENTS = 8  # below, the largest measured error is not used as the interval
PREDICTED = "predicted, not yet measured on this kind of card"


@dataclass(frozen=True)
class PredictionError:
    """The relative error of predicted peaks.

    Attributes:
        share: A peak may be off by this share in either direction.
        source: The share in words, and where it comes from.
    """

    share: float
    source: str

    def interval(self, peak_bytes: int) -> tuple[int, int]:
        """Return the lowest and the highest peak."""
        return int(peak_bytes * (1 - self.share)), int(peak_bytes * (1 + self.share))


def prediction_error(encoder: str, card: Card, rows: Rows) -> PredictionError:
    """Return the error of predictions for this family of encoders on this kind of card.

    It is the largest error in `rows` if enough configurations were measured on cards of the same compute capability.
    Otherwise it is assumed, or the largest error on any card if that is larger.
    """
    kind = encoder_family(encoder)
    measured = [row for row in rows if encoder_family(row["recipe"]["encoder"]["name"]) == kind]
    similar = _on_similar_cards(measured, card)
    if len(similar) >= _MIN_MEASUREMENTS:
        share, source = _largest_error(similar), f"the worst of {_count_by_card(similar)}"
    else:
        share, source = max(ASSUMED_PEAK_ERROR[kind], _largest_error(measured)), "assumed; checked against "
        source += f"only {_count_by_card(measured)}" if measured else "no card yet"
    return PredictionError(share, f"{kind} ± {share:.0%}: {source}")


def evidence_label(card: Card, rows: Rows) -> str:
    """Return which kind of evidence supports the figures for this kind of card."""
    similar = _on_similar_cards(rows, card)
    return f"predicted; predictions were measured on such cards: {_count_by_card(similar)}" if similar else PREDICTED


def _on_similar_cards(rows: Rows, card: Card) -> Rows:
    return [row for row in rows if row["measured"]["compute_capability"] == card.compute_capability]


def _largest_error(rows: Rows) -> float:
    return max((abs(1 / row["ratio"] - 1) for row in rows), default=0.0)


def _count_by_card(rows: Rows) -> str:
    where = sorted({f"{row['measured']['gpu']} with torch {row['measured']['torch']}" for row in rows})
    return f"{len(rows)} measured configuration{'s' if len(rows) > 1 else ''} ({', '.join(where)})"
