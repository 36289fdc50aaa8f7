"""When a run stops since its rounds have nothing to train on."""

from __future__ import annotations

from collections.abc import Mapping

from choosy.labeling.buyer import LabelBuyer

IN_A_ROW = 3  # rounds with nothing to train on, after which a run stops


def refuse_empty(
    found: str,
    in_a_row: int,
    *,
    is_last: bool,
    has_trained: bool,
    is_spent: bool,
    all_labeled: bool,
    labels: LabelBuyer,
) -> None:
    """Raise a ValueError after several such rounds in a row, and where no round of the run had anything.

    A run that has trained until nothing more could be labeled ends as it should.

    Args:
        found: What is said of the round.
        in_a_row: Rounds with nothing to train on so far.
        is_last: Whether it is the run's last round.
        has_trained: Whether a round before had something.
        is_spent: Whether the budgets pay nothing more.
        all_labeled: Whether all given responses have their labels.
        labels: Where labels are bought.
    """
    if (in_a_row < IN_A_ROW and not (is_last and not has_trained)) or (has_trained and (is_spent or all_labeled)):
        return
    stops = (
        "The run has trained nothing."
        if is_last and not has_trained
        else f"The run stops after {in_a_row} such rounds in a row."
    )
    again = "" if is_last else "; ckpt_path=last continues with the next round"
    check = "Check the labeler, and that the sampler gives different responses"
    if is_spent:
        unless = "" if labels.budget_money is None else ", or labels.evaluation=none"
        check = f"{labels.limits} pays no further label: type a larger one{unless}"
    raise ValueError(f"{found} {stops} {check}{again}.")


def why_empty(judged: Mapping[str, int], all_labeled: bool = False) -> str:
    """Say why a round has nothing to train on, by its counts of judgements."""
    if all_labeled:
        return "every pair that could be labeled has its label from an earlier round."
    ties, invalid = judged["ties"], judged["invalid"]
    return f"every verdict was a tie, invalid, or beyond the label budget ({ties} ties, {invalid} invalid)."
