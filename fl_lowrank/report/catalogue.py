"""A text, or some at several rates, for every compressor there is."""

from __future__ import annotations

from ..compressors import COMPRESSORS

#: Settings to show a method with, the first one alone where one is enough. A method
#: that is not here has defaults for all its settings, and is shown with those.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "topk": (
        "topk(fraction=0.01)",
        "topk(fraction=0.1)",
    ),
    "randk": ("randk(fraction=0.01)",),
    "svd": ("svd(rank=4)", "svd(rank=16)"),
    "rsvd": ("rsvd(rank=4)", "rsvd(rank=16)"),
    "powersgd": ("powersgd(rank=4)", "powersgd(rank=16)"),
    "sparse_dithering": (
        "sparse_dithering(nu=0.1)",
        "sparse_dithering(nu=0.01)",
        "sparse_dithering(nu=0.4)",
    ),
    "sparse_dithering_unbiased": (
        "sparse_dithering_unbiased(omega=0.25)",
        "sparse_dithering_unbiased(omega=0.05)",
    ),
    "atomo": ("atomo(rank=4)", "atomo(rank=16)"),
    "lowrank_unbiased": ("lowrank_unbiased(rank=4)", "lowrank_unbiased(rank=16)"),
    "tucker": ("tucker(accuracy=0.5)", "tucker(accuracy=0.1)"),
    "tensor_train": ("tensor_train(accuracy=0.5)", "tensor_train(accuracy=0.1)"),
    "uniform": ("uniform(bits=8)", "uniform(bits=4)", "uniform(bits=2)"),
    "uniform_stochastic": ("uniform_stochastic(bits=8)", "uniform_stochastic(bits=4)"),
    "sketch": ("sketch(fraction=0.01)",),
    "md_stochastic": ("md_stochastic(fraction=0.1)",),
    "md_greedy": ("md_greedy(fraction=0.01)",),
    "md_greedy_weighted": ("md_greedy_weighted(fraction=0.01)",),
    "md_weighted_greedy": ("md_weighted_greedy(fraction=0.01)",),
    "spherical": (
        "spherical(alpha=0.5, block=8)",
        "spherical(alpha=0.2, block=6)",
    ),
    "spherical_unbiased": ("spherical_unbiased(alpha=0.5, block=8)",),
    "ecsq": ("ecsq(nmse=0.1)", "ecsq(nmse=0.01)", "ecsq(nmse=0.4)"),
    "dither": ("dither(nmse=0.1)", "dither(nmse=0.01)"),
    "dither_unbiased": ("dither_unbiased(nmse=0.1)",),
    "eden": ("eden(bits=1)", "eden(bits=2)", "eden(bits=4)"),
    "eden_contractive": ("eden_contractive(bits=1)", "eden_contractive(bits=3)"),
    "rotated": ("rotated(inner=sparse_dithering(nu=0.1))",),
    "threshold": ("threshold(relative=2.5)", "threshold(relative=1.0)"),
    "induced": ("induced(biased=topk(fraction=0.01), unbiased=randk(fraction=0.01))",),
    "flat": ("flat(inner=topk(fraction=0.01) >> natural())",),
    "budget": ("budget(bytes=2000)", "budget(bytes=20000)"),
    "shrunk": ("shrunk(inner=randk(fraction=0.1))",),
    "by_size": (
        "by_size(threshold=1000, small=f16(), large=topk(fraction=0.01) >> natural())",
    ),
}

#: Compositions worth seeing; ``>>`` has no name in `COMPRESSORS`.
CHAINS = (
    "topk(fraction=0.01) >> natural()",
    "powersgd(rank=4) >> sparse_dithering(nu=0.001)",
)


def examples(name: str) -> tuple[str, ...]:
    """Texts of the compressor ``name``, at least one."""
    return EXAMPLES.get(name, (f"{name}()",))


def catalogue(every_rate: bool = False) -> list[str]:
    """Texts of all compressors and some chains, one for each or all rates."""
    shown = [
        text
        for name in COMPRESSORS
        for text in (examples(name) if every_rate else examples(name)[:1])
    ]
    return [*shown, *CHAINS]
