"""How few bits are possible, and how many the papers count; all as formulas.

Nothing here looks at a message: sizes are measured, and these are what they are
compared with. ``d`` is the number of entries, ``alpha`` a relative squared error
``|C(x) - x|^2 / |x|^2`` (the ``1 - delta`` of `Contractive`), bits are for a whole
tensor.

Lower bounds: `uncertainty_bits` for any compressor, in the worst case;
`gaussian_bits` in the mean over Gaussian data; `spherical_cap_bits` in the mean over
directions. What an unbiased compressor with variance omega needs is the same at
``alpha = omega / (1 + omega)``, since ``C / (1 + omega)`` has that error.

References
----------
M. Safaryan, E. Shulgin, P. Richtarik, "Uncertainty Principle for Communication
Compression in Distributed and Federated Learning and the Search for an Optimal
Compressor", 2020, arXiv 2002.08958. A. Albasyoni, M. Safaryan, L. Condat,
P. Richtarik, "Optimal Gradient Compression for Distributed and Federated Learning",
2020, arXiv 2010.03246. T. M. Cover, J. A. Thomas, "Elements of Information Theory",
chapter 10 (Gaussian sources, reverse water-filling). D. Alistarh et al., "QSGD",
NeurIPS 2017, arXiv 1610.02132. S. Horvath et al., "Natural Compression", 2019, arXiv
1905.10988. W. H. Press et al., "Numerical Recipes", section 6.4 (the continued
fraction of the incomplete beta function).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from .errors import SettingError

_LN2 = math.log(2.0)
_FRACTION_STEPS = 10_000
_FRACTION_FLOOR = 1e-300
#: Bits of a number where the papers count float32, and where its sign is known.
FLOAT_BITS = 32.0
NORM_BITS = 31.0


def _check_error(who: str, alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        msg = f"{who}: expected a relative squared error in (0, 1), found {alpha}"
        raise SettingError(msg)


# --- lower bounds --------------------------------------------------------------------


def uncertainty_bits(d: int, alpha: float) -> float:
    """``(d / 2) log2(1 / alpha)``: no compressor with error alpha sends fewer bits.

    Safaryan et al. (2020): ``alpha 4^(b / d) >= 1``. The balls of radius
    ``sqrt(alpha)`` around the decodable points must cover the unit ball.
    """
    _check_error("uncertainty_bits", alpha)
    return -0.5 * d * math.log2(alpha)


def gaussian_bits(variances: Iterable[float], alpha: float) -> float:
    """Shannon's bound for independent Gaussian entries at relative error alpha.

    Reverse water-filling: with a level ``t`` such that ``sum min(v, t) = alpha sum v``
    the rate is ``sum max(0, log2(v / t) / 2)``. For equal variances this is
    `uncertainty_bits`.
    """
    _check_error("gaussian_bits", alpha)
    ordered = np.sort(np.fromiter(variances, dtype=np.float64))
    if not len(ordered) or not np.all(np.isfinite(ordered)) or ordered[0] < 0.0:
        msg = "gaussian_bits: expected at least one variance, all finite and >= 0"
        raise SettingError(msg)
    goal = alpha * float(ordered.sum())
    if goal == 0.0:
        return 0.0
    # With the i smallest entries under water the level is what the others share.
    below = np.concatenate(([0.0], np.cumsum(ordered)[:-1]))
    levels = (goal - below) / np.arange(len(ordered), 0, -1)
    first = int(np.argmax(levels <= ordered))
    return float(0.5 * np.log2(ordered[first:] / levels[first]).sum())


def spherical_cap_bits(d: int, alpha: float) -> float:
    """``-log2 P(alpha, d)``: least mean bits for a random direction.

    Albasyoni et al. (2020): each message covers at most a cap of probability P.
    """
    return -log_cap_probability(d, alpha) / _LN2


def efficiency(bits: float, d: int, nmse: float) -> float:
    """Measured bits over `uncertainty_bits` at the measured error; 1 is perfect.

    Infinite for ``nmse >= 1``, where no bit is needed, and zero for an exact copy.
    """
    if nmse >= 1.0 or d == 0:
        return math.inf
    return bits / uncertainty_bits(d, nmse) if nmse > 0.0 else 0.0


# --- spherical caps ------------------------------------------------------------------


@lru_cache
def log_cap_probability(d: int, alpha: float) -> float:
    """Natural logarithm of the probability P that a direction lies in a cap.

    ``P(alpha, d) = I_alpha((d - 1) / 2, 1 / 2) / 2`` is the chance that a uniform
    direction in ``d >= 2`` dimensions has a cosine of at least ``sqrt(1 - alpha)``
    with a given one; in one dimension it is 1/2.
    """
    _check_error("log_cap_probability", alpha)
    if d < 1:
        msg = f"log_cap_probability: expected at least one dimension, found {d}"
        raise SettingError(msg)
    if d == 1:
        return -_LN2
    return log_beta_inc((d - 1) / 2.0, 0.5, alpha) - _LN2


def cap_mean_cosine(d: int, alpha: float) -> float:
    """Mean cosine of a uniform direction inside the cap of `log_cap_probability`.

    The density of a cosine t is proportional to ``(1 - t^2)^((d - 3) / 2)``, so the
    integral of t over the cap is elementary.
    """
    log_p = log_cap_probability(d, alpha)
    if d == 1:
        return 1.0
    log_density = math.lgamma(d / 2.0) - math.lgamma((d - 1) / 2.0)
    log_density -= 0.5 * math.log(math.pi)
    log_moment = log_density + 0.5 * (d - 1) * math.log(alpha) - math.log(d - 1)
    return math.exp(log_moment - log_p)


def log_beta_inc(a: float, b: float, x: float) -> float:
    """Natural logarithm of the regularised incomplete beta function I_x(a, b).

    By its continued fraction, on the side where that converges quickly; only the
    logarithm is formed, so values far below the smallest float are fine.
    """
    if not (a > 0.0 and b > 0.0 and 0.0 < x < 1.0):
        msg = f"log_beta_inc: expected a, b > 0 and 0 < x < 1, found {a}, {b}, {x}"
        raise SettingError(msg)
    if x > (a + 1.0) / (a + b + 2.0):
        return math.log1p(-math.exp(_log_beta_tail(b, a, 1.0 - x)))
    return _log_beta_tail(a, b, x)


def _log_beta_tail(a: float, b: float, x: float) -> float:
    """``log I_x(a, b)`` by Lentz's algorithm, for x below about its mean."""
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a)
    log_front += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _FRACTION_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away(1.0 + term * d)
            c = _away(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return log_front + math.log(value)


def _away(value: float) -> float:
    """Keep a denominator away from zero, as Lentz's algorithm needs."""
    return value if abs(value) > _FRACTION_FLOOR else _FRACTION_FLOOR


# --- what the papers count -----------------------------------------------------------


def index_set_bits(k: int, d: int) -> float:
    """``log2 C(d, k)``: no code for k of d positions is shorter on average."""
    nats = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
    return nats / _LN2


def topk_bits(d: int, k: int) -> float:
    """``32 k`` and the cheapest of a list, an enumeration and a bitmap of positions."""
    listed = k * math.ceil(math.log2(d)) if d > 1 else 0
    return FLOAT_BITS * k + min(float(listed), index_set_bits(k, d), float(d))


def randk_bits(k: int) -> float:
    """``32 k`` and a seed of 64 bits."""
    return FLOAT_BITS * k + 64.0


def natural_bits(d: int) -> float:
    """Horvath et al. (2019): a sign and the 8 exponent bits of float32."""
    return 9.0 * d


def qsgd_bits(d: int, levels: int) -> float:
    """Norm, signs and levels of fixed length: ``31 + d (1 + log2(s + 1))``."""
    return NORM_BITS + d * (1.0 + math.log2(levels + 1))


def uniform_bits(d: int, bits: int, block: int) -> float:
    """``bits`` for each entry, and a float for each block."""
    return float(bits) * d + FLOAT_BITS * math.ceil(d / block)


def sparse_dithering_bits(d: int, nu: float) -> float:
    """Worst case of Albasyoni et al. (2020): ``30 + log2 d + c(nu) d`` bits.

    ``c = 3/2 + b + log2(1 + 2^-(3/2 + b/2))`` with ``b = 1 / (2 sqrt nu)``; 3.35 at
    nu = 0.1.
    """
    b = 0.5 / math.sqrt(nu)
    per_entry = 1.5 + b + math.log2(1.0 + 2.0 ** -(1.5 + b / 2.0))
    return 30.0 + math.log2(max(d, 1)) + per_entry * d


def sparse_dithering_unbiased_bits(d: int, omega: float) -> float:
    """Mean of Albasyoni et al.: ``30 + log2 d + (log2 3 + 1 / (2 sqrt omega)) d``."""
    per_entry = math.log2(3.0) + 0.5 / math.sqrt(omega)
    return 30.0 + math.log2(max(d, 1)) + per_entry * d


def spherical_bits(d: int, alpha: float, norm_bits: float = NORM_BITS) -> float:
    """Mean of Albasyoni et al.: the norm and ``-log2 P(alpha, d) + 3`` bits.

    Of one block; their Golomb-Rice code is within 1.56 bits of ``-log2 P``.
    """
    return norm_bits + spherical_cap_bits(d, alpha) + 3.0
