"""Steps for which convergence is proven, where the constants are known.

They hold in *gradient mode*: the update is one full local gradient, all clients take
part, and the model moves by ``-step`` times the estimate. Local training with several
steps, stochastic gradients and sampled clients are outside of it. Such steps are safe
and slow, often 10 to 50 times smaller than the best one: start there and raise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SettingError
from .feedback import EF21, EF21SGDM, Dasha, Diana, Feedback
from .types import Contractive, Exact, Guarantee, Unbiased


@dataclass(frozen=True)
class Smoothness:
    """Lipschitz constants of gradients.

    Attributes
    ----------
    mean : float
        L, of the gradient of the mean of all clients' functions.
    local : sequence of float
        L_i, of each client's own gradient.
    """

    mean: float
    local: Sequence[float]

    @property
    def root_mean_square(self) -> float:
        """Root of the mean of all L_i^2."""
        return math.sqrt(sum(x * x for x in self.local) / len(self.local))


def safe_step(
    feedback: Feedback, guarantee: Guarantee, smoothness: Smoothness
) -> float:
    """Give the largest step that the method's theorem allows.

    Parameters
    ----------
    feedback : Feedback
        The method.
    guarantee : Guarantee
        Of the compressor on the whole update, see `fl_lowrank.ModelCodec.guarantee`.
    smoothness : Smoothness
        Of the clients' functions.

    Returns
    -------
    float
        With L the constant of the mean, R the root mean square and M the largest of the
        local ones, omega the variance, delta the contraction and n the clients:

        - ef21: ``1 / (L + R sqrt(beta / theta))``, theta = 1 - sqrt(1 - delta), beta =
          (1 - delta) / theta (Richtarik, Sokolov, Fatkhullin 2021, theorem 1);
        - ef21sgdm: ``min(delta / (20 R), momentum / (7 L))`` (Fatkhullin, Tyurin,
          Richtarik 2023, theorem 3);
        - diana: ``1 / (M (1 + 6 omega / n))``, for convex functions (Mishchenko et al.
          2019; constant as in Gorbunov, Hanzely, Richtarik 2020, arXiv 1905.11261);
        - dasha: ``1 / (L + R sqrt(16 omega (2 omega + 1) / n))`` (Tyurin, Richtarik
          2023, theorem 6.1).

    Raises
    ------
    SettingError
        If there is no such theorem: for ``plain`` and ``ef`` with different clients no
        constant step leads to the minimum, and without a guarantee nothing is known.
    """
    match feedback, guarantee:
        case EF21SGDM(momentum), Contractive() | Exact():
            delta = _delta(guarantee)
            return min(
                delta / (20.0 * smoothness.root_mean_square),
                momentum / (7.0 * smoothness.mean),
            )
        case EF21(), Contractive() | Exact():
            theta = 1.0 - math.sqrt(1.0 - _delta(guarantee))
            root = math.sqrt(1.0 - _delta(guarantee)) / theta  # sqrt(beta / theta)
            return _inverse(smoothness, root)
        case Diana(), Unbiased() | Exact():
            spread = 6.0 * _omega(guarantee) / len(smoothness.local)
            return 1.0 / (max(smoothness.local) * (1.0 + spread))
        case Dasha(), Unbiased() | Exact():
            omega = _omega(guarantee)
            square = 16.0 * omega * (2.0 * omega + 1.0) / len(smoothness.local)
            return _inverse(smoothness, math.sqrt(square))
    msg = (
        f'theory: no safe step is known for feedback="{feedback}" with {guarantee}; '
        "ef21 and ef21sgdm have one for Contractive, diana and dasha for Unbiased"
    )
    raise SettingError(msg)


def _inverse(smoothness: Smoothness, factor: float) -> float:
    return 1.0 / (smoothness.mean + smoothness.root_mean_square * factor)


def _delta(guarantee: Contractive | Exact) -> float:
    return guarantee.delta if isinstance(guarantee, Contractive) else 1.0


def _omega(guarantee: Unbiased | Exact) -> float:
    return guarantee.omega if isinstance(guarantee, Unbiased) else 0.0
