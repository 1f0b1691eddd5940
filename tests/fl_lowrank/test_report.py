"""Tables of methods, tensors and models, and the command that prints them."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fl_lowrank as fll
from fl_lowrank import __main__ as command
from fl_lowrank import bounds
from fl_lowrank.compressors import COMPRESSORS
from fl_lowrank.errors import InputError, SpecError
from fl_lowrank.model import ModelCodec, layout_of
from fl_lowrank.report import (
    EXAMPLES,
    Row,
    catalogue,
    describe,
    examples,
    largest,
    measure,
    method_table,
    model_report,
    rate_table,
    read_tensors,
    table,
)
from fl_lowrank.wire import TensorLayout


def network() -> dict[str, Tensor]:
    rng = fll.rng.stream(40)
    return {
        "conv.weight": rng.child("a").normal(8, 3, 3, 3),
        "conv.bias": rng.child("b").normal(8),
        "norm.weight": rng.child("c").normal(8).to(torch.float16),
        "norm.running_mean": rng.child("d").normal(8),
        "norm.num_batches_tracked": torch.tensor(7),
        "fc.weight": rng.child("e").normal(60, 72),
    }


# --- the catalogue -------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_has_an_example(name: str) -> None:
    """Without settings of its own, a row is missing from `EXAMPLES`."""
    for text in examples(name):
        assert fll.parse(text).name == name, f"report/catalogue.py: no row for {name}"


def test_examples_are_of_compressors_that_exist() -> None:
    assert set(EXAMPLES) <= set(COMPRESSORS)
    one, every = catalogue(), catalogue(every_rate=True)
    assert len(one) == len(set(one)) >= len(COMPRESSORS) + 2
    assert set(one) < set(every)
    assert len(every) == len(set(every))


# --- one method on one tensor --------------------------------------------------------


def test_a_row_is_measured() -> None:
    x = fll.rng.stream(41).normal(50, 40)
    row = measure("topk(k=100) >> f16()", x, repeats=2)
    compressor = fll.parse("topk(k=100) >> f16()")
    payload, _ = compressor.encode(x, {}, fll.rng.stream(0, "report"))
    y = fll.decode(payload)
    assert row.size_bytes == len(fll.pack(payload))
    assert row.bits_per_entry == 8 * len(fll.pack(payload)) / 2000
    expected = float((y - x).square().sum() / x.square().sum())
    assert row.nmse == pytest.approx(expected, rel=1e-5)
    assert row.efficiency == pytest.approx(
        row.bits_per_entry / (0.5 * math.log2(1 / row.nmse))
    )
    assert row.guarantee == compressor.guarantee((50, 40))
    assert row.encode_ms > 0 < row.decode_ms


def test_what_has_no_efficiency() -> None:
    x = fll.rng.stream(41).normal(100)
    assert math.isnan(measure("identity()", x).efficiency)
    assert math.isnan(measure("randk(k=1)", x).efficiency)
    assert measure("topk(k=1)", torch.zeros(9)).nmse == 0.0
    empty = measure("natural()", torch.zeros(0))
    assert math.isnan(empty.bits_per_entry)


def test_magnitude_does_not_matter() -> None:
    x = fll.rng.stream(41).normal(100).double()
    plain = measure("sparse_dithering()", x).nmse
    for factor in (1e-300, 1e300):
        scaled = measure("sparse_dithering()", x * factor)
        assert scaled.nmse == pytest.approx(plain, rel=1e-6)


def test_a_refusal_is_a_row() -> None:
    """Other methods are still shown."""
    row = measure("natural()", torch.tensor([math.nan]))
    assert row.size_bytes is None
    assert "natural" in row.refusal
    assert math.isnan(row.bits_per_entry)
    good = measure("identity()", torch.ones(3))
    for text in (method_table([row, good]), rate_table([row, good])):
        assert "NaN" in text
        assert "identity()" in text
    with pytest.raises(SpecError, match="no compressor 'nothing'"):
        measure("nothing()", torch.ones(3))


def test_guarantees_in_words() -> None:
    assert describe(fll.Exact()) == "exact"
    assert describe(fll.Unbiased(1.25)) == "unbiased, zeta = 1.25"
    assert describe(fll.Contractive(0.01)) == "contractive, delta = 0.01"
    assert describe(fll.Contractive(1 - 2e-7)) == "contractive, 1 - delta = 2e-07"
    assert describe(fll.NoGuarantee("why not")) == "none: why not"


def test_tables_are_aligned() -> None:
    text = table(("name", "n"), [("a", "1"), ("word " * 30, "1,000")])
    lines = text.split("\n")
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("    n")
    assert lines[2].startswith("a  ")
    assert lines[3].endswith(" ...  1,000")
    assert len(lines[0]) < 75


def test_rates_are_sorted_by_bytes() -> None:
    rows = [
        Row("a", fll.Exact(), 10, 300, 0.0, 1.0, 1.0),
        Row("b", None, 10, refusal="does not fit"),
        Row("c", fll.Exact(), 10, 20, 0.25, 1.0, 2.0),
    ]
    lines = rate_table(rows).split("\n")
    assert [line[0] for line in lines[2:]] == ["c", "a", "b"]
    assert lines[2].split() == ["c", "20", "16.0000", "0.25", "1.0", "2.0", "16.000"]
    assert lines[4].split() == ["b", "does", "not", "fit"]


# --- whole models --------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["topk(fraction=0.1) >> natural()", "*bias: f16(); *weight: svd(rank=2)"],
)
def test_a_model_report_adds_up_to_the_messages(spec: str) -> None:
    model = network()
    report = model_report(model, spec)
    exact = {k: model[k] for k in ("norm.running_mean", "norm.num_batches_tracked")}
    lossy = {k: v.float() for k, v in model.items() if k not in exact}
    sent = ModelCodec(spec).encode(lossy, {}, fll.rng.stream(0, "report"))[0]
    rest = ModelCodec("*: identity()").encode(exact, {}, fll.rng.stream(0))[0]
    assert report.total_bytes == len(sent) + len(rest)
    framing = report.total_bytes - sum(row.size_bytes for row in report.rows)
    assert 0 < framing < 40
    names = [name for row in report.rows for name in row.names]
    assert sorted(names) == sorted(model)
    assert report.dense_bytes == sum(t.nbytes for t in model.values())
    for row in report.rows:
        assert row.numel == sum(model[name].numel() for name in row.names)
        assert row.nmse < 1
        assert row.nmse == 0.0 or row.compressor != "identity()"
    assert max(row.nmse for row in report.rows) > 0.3


def test_shapes_are_enough_for_a_report() -> None:
    layout = layout_of(network())
    report = model_report(layout, "natural()")
    assert report == model_report(layout, "natural()")
    assert report != model_report(layout, "natural()", seed=1)
    assert layout["fc.weight"] == TensorLayout((60, 72), torch.float32)
    (row,) = (row for row in report.rows if row.names == ("fc.weight",))
    assert 8 * row.size_bytes / row.numel == pytest.approx(3.54, abs=0.1)


def test_more_arrays_can_be_exact() -> None:
    report = model_report(network(), "topk(k=3)", exact=("fc.*",))
    (row,) = (row for row in report.rows if row.names == ("fc.weight",))
    assert row.compressor == "identity()"
    assert row.size_bytes > row.dense_bytes


def test_a_model_report_as_text() -> None:
    text = str(model_report(network(), "topk(fraction=0.1)"))
    lines = text.split("\n")
    assert lines[0].split()[:4] == ["tensor", "entries", "compressor", "dense"]
    assert any("conv.bias" in line for line in lines)
    assert lines[-1].startswith("total")
    assert f"{sum(t.numel() for t in network().values()):,}" in lines[-1]


def test_a_model_report_names_the_tensor_at_fault() -> None:
    model = network()
    model["fc.weight"][3, 3] = math.inf
    with pytest.raises(InputError, match=r"tensor 'fc\.weight'"):
        model_report(model, "topk(k=3)")
    with pytest.raises(SpecError, match=r"none fits 'conv\.weight'"):
        model_report(network(), "*bias: f16()")


# --- files ---------------------------------------------------------------------------


def test_files_of_arrays_and_tensors(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4))
    np.save(tmp_path / "plain.npy", x)
    np.save(tmp_path / "other.npy", np.asfortranarray(x.astype(">f4")))
    assert torch.equal(read_tensors(tmp_path / "plain.npy")["plain"], torch.tensor(x))
    (swapped,) = read_tensors(tmp_path / "other.npy").values()
    assert torch.equal(swapped, torch.tensor(x, dtype=torch.float32))
    torch.save(torch.ones(3), tmp_path / "one.pt")
    assert read_tensors(tmp_path / "one.pt")["one"].tolist() == [1, 1, 1]
    state = {"step": 3, "model": network(), "deep": {"a": {"b": torch.ones(2)}}}
    torch.save(state, tmp_path / "state.pth")
    found = read_tensors(str(tmp_path / "state.pth"))
    assert set(found) == {f"model.{name}" for name in network()} | {"deep.a.b"}
    assert largest(found)[0] == "model.fc.weight"
    assert largest(found, "deep.a.b")[1].tolist() == [1, 1]
    parameter = torch.nn.Parameter(torch.ones(2))
    torch.save({"p": parameter}, tmp_path / "parameter.pt")
    assert not read_tensors(tmp_path / "parameter.pt")["p"].requires_grad


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.at),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"x": Trap(sprung)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap(sprung)))
    np.save(tmp_path / "c.npy", np.array([Trap(sprung)]), allow_pickle=True)
    (tmp_path / "d.npy").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("a.pt", "b.pt", "c.npy", "d.npy"):
        with pytest.raises(InputError, match=r"cannot read .* safely"):
            read_tensors(tmp_path / name)
    assert not sprung.exists()
    np.load(tmp_path / "c.npy", allow_pickle=True)  # the trap does work
    assert sprung.exists()


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    for name in ("empty.npy", "empty.pt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "noise.npy").write_bytes(bytes(range(256)))
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)))
    np.savez(tmp_path / "zip", x=np.ones(3))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    head = huge.ljust(117) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + head)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=r"cannot read .* safely"):
            read_tensors(path)
    with pytest.raises(InputError, match=r"cannot open .*No such file"):
        read_tensors(tmp_path / "absent.npy")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"cannot open"):
        read_tensors(tmp_path / "folder.pt")
    with pytest.raises(InputError, match=r"expected a \.npy, \.pt or \.pth file"):
        read_tensors(tmp_path / "model.ckpt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"expected tensors in .*found dict"):
        read_tensors(tmp_path / "none.pt")
    integers = {"i": torch.ones(3, dtype=torch.int64), "x": torch.ones(1)}
    with pytest.raises(InputError, match="the tensor 'i', found of real numbers: x"):
        largest(integers, "i")
    with pytest.raises(InputError, match=r"a tensor of real numbers, found .*none"):
        largest({"i": integers["i"]})


# --- the command ---------------------------------------------------------------------


def run(*arguments: str) -> int:
    return command.main(list(arguments))


def test_all_methods_on_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--shape", "24,40", "--add", "topk(k=3) >> f16()") == 0
    out = capsys.readouterr().out
    for name in COMPRESSORS:
        assert f"\n{name}(" in out
    assert "\ntopk(k=3) >> f16()" in out
    assert "float32, shape (24, 40): 3,840 bytes" in out
    # The wire cost is that of a real message.
    x = fll.rng.stream(0, "shape").normal(24, 40)
    payload, _ = fll.parse("natural()").encode(x, {}, fll.rng.stream(0, "report"))
    (line,) = (row for row in out.split("\n") if row.startswith("natural()"))
    assert line.split()[-2:] == [
        f"{len(fll.pack(payload)):,}",
        f"{8 * len(fll.pack(payload)) / 960:.4f}",
    ]
    assert "contractive, delta = 0.8889" in line


def test_methods_that_are_asked_for_alone(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("f16()", "topk(fraction=0.01) >> natural()")
    assert run("--shape", "", *(w for t in texts for w in ("--compressor", t))) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == 2 + 2 + len(texts)


def test_rates_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "u.npy", np.random.default_rng(0).standard_t(3, size=(30, 20)))
    assert run(str(tmp_path / "u.npy"), "--repeats", "1") == 0
    out = capsys.readouterr().out
    assert "u: float64, shape (30, 20), 4,800 bytes" in out
    for text in catalogue(every_rate=True):
        assert f"\n{text[:50]}" in out
    torch.save({"a": torch.ones(9), "b": torch.ones(4)}, tmp_path / "m.pt")
    options = ("--key", "b", "--compressor", "topk(k=1)", "--repeats", "1")
    assert run(str(tmp_path / "m.pt"), *options) == 0
    (row,) = (
        line.split()
        for line in capsys.readouterr().out.split("\n")
        if line.startswith("topk")
    )
    assert row[3] == "0.75"
    share = 8 * int(row[1]) / bounds.uncertainty_bits(4, 0.75)
    assert float(row[-1]) == pytest.approx(share, abs=1e-3)


def test_bytes_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.pt")
    torch.save(network(), path)
    rules = "*bias: f16(); *: powersgd(rank=1)"
    assert run("--model", path, "--uplink", rules) == 0
    out = capsys.readouterr().out
    assert out.strip() == f"{rules}\n\n{model_report(network(), rules)}"
    assert run("--model", path, "--gaussian") == 0
    default = "topk(fraction=0.01) >> natural()"
    expected = model_report(layout_of(network()), default)
    assert capsys.readouterr().out.strip() == f"{default}\n\n{expected}"


def test_errors_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x": torch.tensor([1.0, math.nan])}, tmp_path / "nan.pt")
    (tmp_path / "bad.pt").write_bytes(b"no tensors")
    for arguments, reason in (
        ((str(tmp_path / "bad.pt"),), "cannot read"),
        ((str(tmp_path / "absent.npy"),), "No such file"),
        ((str(tmp_path / "nan.pt"),), "expected finite numbers in 'x'"),
        ((str(tmp_path / "nan.pt"), "--key", "y"), "the tensor 'y'"),
        (("--compressor", "nothing()"), "no compressor 'nothing'"),
        (("--add", "spherical(alpha=0.1, block=30)"), "block=12 fits"),
        (("--model", str(tmp_path / "nan.pt"), "--uplink", "("), "cannot read '('"),
    ):
        assert run(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("python -m fl_lowrank: ")
        assert reason in err
        assert err.count("\n") == 1
    for wrong in (["--shape", "3,x"], ["--shape", "-1"], ["--shape", "99999,99999"],
                  ["a.npy", "--model", "b.pt"]):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            run(*wrong)
        assert caught.value.code == 2
        assert "expected sizes" in (err := capsys.readouterr().err) or "both" in err


def test_the_command_starts() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "fl_lowrank", "--shape", "8", "--compressor", "f16()"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(fll.__file__).parents[1],
    )
    assert "contractive, 1 - delta = 2.4e-07" in child.stdout
