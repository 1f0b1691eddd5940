"""The family of levels of one step, with dead zones of any width."""

from __future__ import annotations

import math

import numpy as np

from ...types import Compressor
from ..scalar import LARGEST_STEP, LEAST_STEP, Ecsq
from ..sparse import TopK
from ..wrappers import Then
from .families import (
    FRAME_BITS,
    LEVEL_BITS,
    MOST_LEVELS,
    NESTED_BITS,
    Choice,
    Family,
    position_bits,
)
from .magnitudes import Floats, Magnitudes

_PER_OCTAVE = 4  # steps that are tried
#: Least magnitudes that are sent, in steps. Half a step is plain rounding; at low rates
#: a wider dead zone pays, since the places of the few entries that are sent cost most,
#: and as a set of positions they are coded with regard to rows and columns.
_PLAIN = 0.5
_ZONES = (0.55, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5)
_COARSE = 0.25  # wider zones are tried for steps above so many root mean squares
_MARGIN = 1.999  # a step of two times the largest entry would lose it


class Rounding(Family):
    """`Ecsq`, by its step; with wide dead zones ``topk(...) >> ecsq(...)``."""

    def __init__(self, x: Magnitudes) -> None:
        self.x = x
        octaves = math.log2(x.peak / (LEAST_STEP * x.rms))
        powers = np.arange(0.0, octaves, 1.0 / _PER_OCTAVE)
        steps = _MARGIN * x.peak * 2.0**-powers
        coarse = steps[steps > _COARSE * x.rms]
        self.steps = np.concatenate([steps, np.tile(coarse, len(_ZONES))])
        self.zones = np.concatenate(
            [np.full(len(steps), _PLAIN), np.repeat(_ZONES, len(coarse))]
        )
        fits = self.steps * self.zones < x.peak
        self.steps, self.zones = self.steps[fits], self.zones[fits]
        self.bits, self.errors = self._measure()

    def choice(self, i: int) -> Choice:
        """Give one setting."""
        step, zone = float(self.steps[i]), float(self.zones[i])
        return Choice(
            float(self.bits[i]),
            float(self.errors[i]),
            lambda scale: self._bits(step * scale, zone),
            lambda scale: self._compressor(step * scale, zone),
        )

    def _compressor(self, step: float, zone: float) -> Compressor:
        step = min(step, _MARGIN * self.x.peak)
        if zone == _PLAIN:
            return Ecsq(step=_limited(step / self.x.rms))
        count, energy = self.x.above(np.array([zone * step]))
        k = max(round(float(count[0])), 1)
        rms = math.sqrt(float(energy[0]) / float(count[0])) if count[0] >= 1.0 else 0.0
        return Then(TopK(k=k), Ecsq(step=_limited(step / max(rms, zone * step))))

    def _bits(self, step: float, zone: float) -> float:
        """Predict the size for one setting, smoothly."""
        step = min(step, _MARGIN * self.x.peak)
        edges = step * np.arange(0.5, self.x.peak / step + 1.0)
        edges = np.maximum(edges, zone * step)
        above, _ = self.x.above(edges)
        counts = above - np.append(above[1:], 0.0)
        own = -float(counts @ np.log2(np.maximum(counts, 1.0)))
        kinds = np.array([float((counts > 0.5).sum())])
        bits = self._total(above[:1], np.array([own]), kinds, np.array([zone]))
        return float(bits[0])

    def _measure(self) -> tuple[Floats, Floats]:
        """Predict sizes and errors of all settings together."""
        counts, middles, widths = self.x.bins
        steps, zones = self.steps[:, None], self.zones[:, None]
        # Bins wider than a step hold several levels, alike in number.
        wide = np.maximum(np.log2(widths / steps), 0.0)
        exact = middles / steps  # (settings, bins)
        levels = np.where(wide > 0.0, exact, np.floor(exact + 0.5))
        levels[exact < zones] = 0.0
        # Magnitudes grow along a row, so equal levels are neighbours.
        starts = np.diff(levels, prepend=-1.0, axis=1) > 0.0
        places = np.flatnonzero(starts)
        tiled = np.broadcast_to(counts, levels.shape).ravel()
        sums: Floats = np.add.reduceat(tiled, places)
        rows = places // levels.shape[1]
        sums *= levels.ravel()[places] > 0.0
        sent = np.bincount(rows, sums, len(steps)).astype(np.float64)
        own = -np.bincount(rows, sums * np.log2(np.maximum(sums, 1.0)), len(steps))
        kinds = np.bincount(rows[sums > 0.0], minlength=len(steps)).astype(np.float64)
        bits = self._total(sent, own + wide @ counts, kinds, self.zones)
        square = levels**2 @ counts
        cross = levels @ (counts * middles)
        kept = np.divide(cross**2, square, out=np.zeros_like(cross), where=square > 0.0)
        # Not the energy of the entries, which differs by more than fine steps lose.
        errors = np.maximum(float(counts @ middles**2) - kept, 0.0)
        return bits, errors + (wide > 0.0) @ counts * self.steps**2 / 12.0

    def _total(self, sent: Floats, own: Floats, kinds: Floats, zones: Floats) -> Floats:
        """Add the bits of positions, levels, signs, tables and frames.

        ``own`` is minus the sum of c log2 c over the counts c of the levels.
        """
        plain = zones == _PLAIN
        cost = np.where(plain, 1.0, self.x.clustering)
        bits = cost * position_bits(sent, self.x.numel)
        bits += sent * np.log2(np.maximum(sent, 1.0)) + own + sent
        bits += LEVEL_BITS * np.minimum(2.0 * kinds, MOST_LEVELS)
        return bits + FRAME_BITS + np.where(plain, 0.0, NESTED_BITS)


def _limited(step: float) -> float:
    return min(max(step, LEAST_STEP), LARGEST_STEP)
