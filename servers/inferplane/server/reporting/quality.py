"""Quality of a model's versions, by the labels received."""

from dataclasses import dataclass

__all__ = ["VersionQuality"]


@dataclass(frozen=True, slots=True)
class VersionQuality:
    """Rows of one version: predicted by calls that succeeded, with a label, and predicted right.

    A row is right where its label equals the predicted class, character by character.
    """

    model: str
    version: int
    digest: str
    row_count: int
    labelled_count: int
    correct_count: int

    @property
    def accuracy(self) -> float | None:
        """The share of labelled rows that were right, as scikit-learn's `accuracy_score`; None without labels."""
        return self.correct_count / self.labelled_count if self.labelled_count else None
