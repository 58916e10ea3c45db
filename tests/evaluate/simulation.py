"""Models whose skill is known."""

import numpy as np

LABELS = ("Mortgage", "Debt collection", "Consumer loan, Vehicle loan or lease, Payday loan, title loan, or personal loan")
TEXT = "They said <script>alert('x')</script> & closed my account."


def simulated(y: np.ndarray, n_labels: int, skill: float, seed: int, sharpness: float = 1.0) -> np.ndarray:
    """Return logits, shape (n, n_labels), of a model that prefers the right label by `skill`.

    With sharpness 1 and equally frequent labels its softmax is calibrated: the logits are exact log likelihood ratios.
    """
    evidence = np.random.default_rng(seed).normal(size=(len(y), n_labels))
    evidence[np.arange(len(y)), y] += skill
    return evidence * skill * sharpness
