"""The laws find what they are there for: one broken compressor for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from fl_lowrank import checks, decoders
from fl_lowrank.addends import Addend, Dense
from fl_lowrank.compressors import (
    COMPRESSORS,
    F16,
    Identity,
    Natural,
    NaturalStochastic,
    PowerSgd,
    RandK,
    Sketch,
    TopK,
)
from fl_lowrank.errors import WireError
from fl_lowrank.rng import Rng
from fl_lowrank.types import (
    Coding,
    Compressor,
    Contractive,
    Exact,
    Field,
    Guarantee,
    Kind,
    NoGuarantee,
    Payload,
    Shape,
    State,
    Unbiased,
)

Encoded = tuple[Payload, State]


class UsesGlobalDraws(RandK):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x, state, Rng(int(torch.randint(1 << 30, ()))))


class IgnoresRng(NaturalStochastic):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x, state, Rng(1))


class Overwrites(TopK):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        payload = super().encode(x, state, rng)
        x.detach().mul_(0.5)
        return payload


class OverwritesState(PowerSgd):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        payload, after = super().encode(x, state, rng)
        for key, value in state.items():
            value.copy_(after[key])
        return payload, after


class DecodesByInstance(TopK):
    def decode(self, payload: Payload) -> Tensor:  # type: ignore[override]
        return TopK.decode(payload) * (self.k or 1)


class Flattens(Identity):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x.reshape(-1), state, rng)


class Grows(TopK):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        payload, _ = super().encode(x, state, rng)
        return payload, state | {f"turn{len(state)}": torch.zeros(1)}


class NeedsItsState(PowerSgd):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        payload, after = super().encode(x, state, rng)
        if state:
            after = {k: state[k] * 0.5 + v * 0.5 for k, v in after.items()}
            if any(v.shape != state[k].shape for k, v in after.items()):
                raise AssertionError("shapes")
        return payload, after


class AddsOne(Identity):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x + 1, state, rng)


class TakesNan(Identity):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x.nan_to_num(), state, rng)


class Overflows(Identity):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        field = Field(Coding.RAW, x.detach().reshape(-1) * 2 / 2)
        return Payload(
            decoders.KINDS[0], tuple(x.shape), x.dtype, {"values": field}
        ), {}


class Forgets(TopK):
    def __str__(self) -> str:
        return "topk(k=1)"


class ClaimsTooMuch(TopK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Contractive(1.5)


class GivesNoReason(TopK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return NoGuarantee("no")


class NotExact(TopK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Exact()


class NoLoss(Identity):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Contractive(0.5)


class Biased(NaturalStochastic):
    """Rounds up with the square of the probability."""

    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return Natural().encode(x, state, rng)


class BiasedByAQuarterPercent(NaturalStochastic):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(x * 1.05, state, rng)


class MoreVariance(RandK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Unbiased(1.5)


class LessKept(TopK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Contractive(0.6)


class RandomLessKept(RandK):
    def guarantee(self, shape: Shape) -> Guarantee:
        return Contractive(0.9)


class Increases(RandK):
    norm_nonincreasing: ClassVar[bool] = True


class HasUnits(TopK):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return super().encode(torch.where(x.abs() < 0.7, 0.0, x), state, rng)


class Bloated(TopK):
    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        return TopK(fraction=1.0).encode(x, state, rng)


BROKEN: list[tuple[Compressor, checks.Law, str]] = [
    (UsesGlobalDraws(k=9), checks.check_same_rng_same_bytes, "generator is used"),
    (IgnoresRng(), checks.check_variance_is_not_zero_off_grid, "no draw differs"),
    (Overwrites(k=9), checks.check_input_untouched, "changes its input"),
    (OverwritesState(2), checks.check_input_untouched, "the state in place"),
    (DecodesByInstance(k=9), checks.check_decodes_from_bytes_alone, "staticmethod"),
    (Flattens(), checks.check_keeps_shape_and_dtype, "decodes to torch.float32"),
    (Grows(k=9), checks.check_state_is_flat_and_stable_in_shape, "state changes from"),
    (AddsOne(), checks.check_zero_maps_to_zero, "zero does not decode"),
    (TakesNan(), checks.check_rejects_nan_and_inf, "takes nan"),
    (Overflows(), checks.check_large_and_tiny_numbers, "cannot be decoded"),
    (Forgets(k=9), checks.check_text_rebuilds_it, "is read as TopK"),
    (ClaimsTooMuch(k=9), checks.check_guarantee_is_stated, "delta = 1.5"),
    (GivesNoReason(k=9), checks.check_guarantee_is_stated, "needs a reason"),
    (NotExact(k=9), checks.check_guarantee_is_stated, "claims to be exact"),
    (NoLoss(), checks.check_variance_is_not_zero_off_grid, "nothing is lost"),
    (Biased(), checks.check_unbiased_within_5_sigma, "bias"),
    (BiasedByAQuarterPercent(), checks.check_unbiased_within_5_sigma, "bias"),
    (MoreVariance(k=60), checks.check_second_moment_below_zeta, "zeta is 1.5"),
    (LessKept(k=60), checks.check_contraction_below_1_minus_delta, "1 - delta is 0.4"),
    (
        RandomLessKept(k=60),
        checks.check_contraction_below_1_minus_delta,
        "1 - delta is 0.1",
    ),
    (Increases(k=60), checks.check_norm_nonincreasing, "|C(x)| ="),
    (HasUnits(k=960), checks.check_scaling_equivariant, "is not 4.0 C(x)"),
    (Bloated(k=9), checks.check_bytes_below_stated_bound, "bytes"),
]


@pytest.mark.parametrize(
    ("compressor", "law", "message"), BROKEN, ids=lambda v: type(v).__name__
)
def test_a_broken_compressor_is_found(
    compressor: Compressor, law: checks.Law, message: str
) -> None:
    """It fails the law at hand, in words; the class that it derives from does not."""
    (failure, *_) = checks.check_law(law, compressor, [(24, 40)], [torch.float32])
    assert message in failure
    assert str(compressor) in failure
    assert "(24, 40)" in failure


def test_every_law_has_a_broken_compressor() -> None:
    """But for those that are shown below, by what a decoder does wrong."""
    tried = {law for _, law, _ in BROKEN}
    rest = {law.__name__ for law in (*checks.LAWS, *checks.STATISTICAL_LAWS)} - {
        law.__name__ for law in tried
    }
    assert rest == {
        "check_accumulate_equals_sum_of_decodes",
        "check_add_equals_sum_of_decodes",
        "check_handles_scalar_empty_and_one",
        "check_state_that_no_longer_fits_restarts",
    }


def test_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(cls: type[TopK], payload: Payload) -> Addend:
        return Dense(2.0 * cls.decode(payload))

    monkeypatch.setattr(TopK, "addend", classmethod(twice))
    with pytest.raises(AssertionError, match="the sum is off by"):
        checks.check_accumulate_equals_sum_of_decodes(TopK(k=9), (24, 40))


def test_a_wrong_sum_of_payloads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = Sketch(fraction=0.1)
    checks.check_add_equals_sum_of_decodes(compressor, (24, 40))
    monkeypatch.setattr(Sketch, "add", staticmethod(lambda payloads: payloads[0]))
    with pytest.raises(AssertionError, match="the sum is off by"):
        checks.check_add_equals_sum_of_decodes(compressor, (24, 40))


def test_a_failing_small_tensor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Identity, "decode", staticmethod(lambda p: torch.zeros(1)))
    with pytest.raises(AssertionError, match="decodes to"):
        checks.check_handles_scalar_empty_and_one(Identity())


def test_state_that_is_believed_whatever_it_is_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    iterate = PowerSgd.factorise

    def believes(
        self: PowerSgd, matrix: Tensor, rank: int, state: State, rng: Rng
    ) -> tuple[Tensor, Tensor, State]:
        left, right, after = iterate(self, matrix, rank, {}, rng)
        kept = state.get("right", after["right"])
        return left, right * float(kept.shape == after["right"].shape), after

    monkeypatch.setattr(PowerSgd, "factorise", believes)
    with pytest.raises(AssertionError, match="longer tensors: does not start afresh"):
        checks.check_state_that_no_longer_fits_restarts(PowerSgd(2), (24, 40))


def test_hidden_state_of_a_decoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that reads what the encoder left behind, as seen in the wild."""
    left_behind: list[Tensor] = []
    encode: Callable[..., Encoded] = Identity.encode

    def leaves(self: Identity, x: Tensor, state: State, rng: Rng) -> Encoded:
        left_behind[:] = [x.detach()]
        return encode(self, x, state, rng)

    monkeypatch.setattr(Identity, "encode", leaves)
    monkeypatch.setattr(Identity, "decode", staticmethod(lambda p: left_behind[0]))
    with pytest.raises(AssertionError, match="bytes decode to another tensor"):
        checks.check_decodes_from_bytes_alone(Identity(), (24, 40))


HALVES = Kind(900, "halves", ("values",), (Coding.NESTED,))


@dataclass(frozen=True)
class Halves(Compressor):
    """A third party's compressor, with a payload kind of its own."""

    name: ClassVar[str] = "halves"

    factor: float = 0.5

    def guarantee(self, shape: Shape) -> Guarantee:
        return Contractive(1.0 - (1.0 - self.factor + 2.0**-11) ** 2)

    def encode(self, x: Tensor, state: State, rng: Rng) -> Encoded:
        inner, _ = F16().encode(x * self.factor, {}, rng)
        fields = {"values": Field(Coding.NESTED, inner)}
        return Payload(HALVES, tuple(x.shape), x.dtype, fields), {}

    @staticmethod
    def decode(payload: Payload) -> Tensor:
        return payload.tensor("values").reshape(payload.shape)


def test_a_third_party_can_test_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoders.DECODERS, HALVES, Halves)
    monkeypatch.setitem(decoders.KINDS, HALVES.code, HALVES)
    monkeypatch.setitem(COMPRESSORS, "halves", Halves)
    checks.check_all(Halves())
    with pytest.raises(AssertionError) as found:
        checks.check_all(
            LessKept(k=60),
            [(24, 40), (40, 24)],
            [torch.float32],
            except_laws=[checks.check_text_rebuilds_it],
        )
    lines = str(found.value).splitlines()
    assert lines[0] == "topk(k=60) breaks its contract:"
    assert len(lines) == 3
    assert all("check_contraction" in line for line in lines[1:])


def test_a_kind_without_decoder_is_named() -> None:
    with pytest.raises(WireError, match="payload kind 900 is unknown here"):
        checks.check_zero_maps_to_zero(Halves(), (3,))
