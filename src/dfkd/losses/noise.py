"""Learning from labels that are sometimes wrong."""

from jaxtyping import Float
from torch import Tensor

from dfkd.types import Labels, Logits, Scalar

__all__ = ["noisy_label_loss"]


def noisy_label_loss(logits: Logits, labels: Labels, transition: Float[Tensor, "k k"]) -> Scalar:
    """Mean of ``-log Σ_i p_i Q[i, label]`` with p the softmax of ``logits`` (n, k) (DFND, as coded).

    Args:
        logits: of a network that is to answer with the true class.
        labels: noisy labels (n,): the teacher's classes.
        transition: Q, whose row i holds the probabilities that an image of class i is called each of the classes.
    """
    likelihood = transition.T.index_select(0, labels)  # (n, k): probability of the observed label given each true class
    return -(logits.log_softmax(dim=1) + likelihood.log()).logsumexp(dim=1).mean()
