from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from fl_lowrank.pages import Pages


def resident_bytes() -> int:
    return mmap.PAGESIZE * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.parametrize("numel", [0, 1, 1000, 2**18])
def test_a_vector_of_zeros(numel: int) -> None:
    pages = Pages(numel)
    assert pages.vector.shape == (numel,)
    assert pages.vector.dtype == torch.float64
    assert not pages.vector.any()
    pages.vector += 1.0
    assert float(pages.vector.sum()) == numel


def test_what_is_given_back_takes_no_memory_and_the_rest_stays() -> None:
    numel, size = 2**22, 2**25
    pages = Pages(numel)
    pages.vector += 1.0
    full = resident_bytes()
    half = numel // 2
    pages.give_back(pages.vector[3:half])
    assert resident_bytes() <= full - 0.45 * size
    assert bool((pages.vector[:3] == 1.0).all())
    assert bool((pages.vector[half:] == 1.0).all())


def test_less_than_a_page_is_kept() -> None:
    pages = Pages(4096)
    pages.vector += 1.0
    pages.give_back(pages.vector[1:500])
    assert bool((pages.vector == 1.0).all())


def test_a_view_outlives_its_pages() -> None:
    view = Pages(4096).vector[7:9]
    assert view.tolist() == [0.0, 0.0]
