"""Text <-> compressor and rules."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

import fl_lowrank as fll
from fl_lowrank.compressors import (
    COMPRESSORS,
    F16,
    BySize,
    Identity,
    Natural,
    PowerSgd,
    RandK,
    Rsvd,
    Shrunk,
    SparseDithering,
    Then,
    TopK,
)
from fl_lowrank.errors import SettingError, SpecError
from fl_lowrank.spec import Rule, parse, parse_rules
from fl_lowrank.syntax import MAX_DEPTH, MAX_LENGTH
from fl_lowrank.types import Compressor

TEXTS: dict[str, Compressor] = {
    "identity()": Identity(),
    "f16()": F16(),
    "natural()": Natural(),
    "topk(k=9)": TopK(k=9),
    "topk(fraction=0.01)": TopK(fraction=0.01),
    "randk(fraction=1e-05)": RandK(fraction=1e-5),
    "powersgd()": PowerSgd(),
    "powersgd(rank=2, num_iterations=3)": PowerSgd(rank=2, num_iterations=3),
    "rsvd(rank=1, oversampling=0, num_iterations=0)": Rsvd(1, 0, 0),
    "sparse_dithering(nu=0.2)": SparseDithering(nu=0.2),
    "topk(k=9) >> natural()": Then(TopK(k=9), Natural()),
    "topk(k=9) >> randk(k=3) >> f16()": Then(TopK(k=9), Then(RandK(k=3), F16())),
    "shrunk(inner=randk(k=3))": Shrunk(RandK(k=3)),
    "shrunk(inner=randk(k=3) >> identity())": Shrunk(Then(RandK(k=3), Identity())),
    "by_size(threshold=100, small=f16(), large=topk(k=9) >> f16())": BySize(
        100, F16(), Then(TopK(k=9), F16())
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_compressors_are_two_forms_of_one_thing(text: str) -> None:
    compressor = parse(text)
    assert compressor == TEXTS[text]
    assert type(compressor) is type(TEXTS[text])
    assert str(compressor) == text
    assert parse(str(compressor)) == compressor


def test_spaces_and_order_do_not_matter() -> None:
    dense = "by_size(small=f16(),threshold=+7,large=topk(k=9)>>natural())"
    loose = " by_size ( large = topk( k=9 )\n>> natural( ) , threshold =7, small=f16())"
    assert parse(dense) == parse(loose) == BySize(7, F16(), Then(TopK(k=9), Natural()))


def test_numbers() -> None:
    for text, fraction in [("1", 1.0), (".5", 0.5), ("5.e-1", 0.5), ("1E-3", 1e-3)]:
        compressor = parse(f"topk(fraction={text})")
        assert compressor == TopK(fraction=fraction)
        assert isinstance(compressor, TopK)
        assert type(compressor.fraction) is float
    long = "9" * 4000
    assert parse(f"topk(k={long})") == TopK(k=int(long))


#: No setting of theirs is needed, but one of several is.
NEED_ONE_OF_SOME = {
    *("topk", "randk", "tucker", "tensor_train", "sketch", "threshold"),
    *("ecsq", "dither", "dither_unbiased"),
    *("md_stochastic", "md_greedy", "md_greedy_weighted", "md_weighted_greedy"),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_name_is_understood_or_asks_for_its_settings(name: str) -> None:
    cls = COMPRESSORS[name]
    if any(f.default is MISSING for f in fields(cls)):
        with pytest.raises(SpecError, match=f"{name} needs "):
            parse(f"{name}()")
        return
    if name in NEED_ONE_OF_SOME:
        with pytest.raises(SettingError, match=f"write {name}"):
            parse(f"{name}()")
        return
    assert type(parse(f"{name}()")) is cls


def test_exact_is_identity() -> None:
    assert parse("exact()") == Identity()
    assert parse_rules("*: exact()") == [Rule("*", Identity())]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected name, found the end"),
        ("   ", "expected name, found the end"),
        ("topk", r"expected \(, found the end"),
        ("topk(", "expected name, found the end"),
        ("topk(k", "expected =, found the end"),
        ("topk(k=", "expected a value, found the end"),
        ("topk(k=9", "expected ,, found the end"),
        ("topk(k=9))", r"expected the end, found \)"),
        ("topk(k=9) natural()", "expected the end, found natural"),
        ("topk(k=9) >> ", "expected name, found the end"),
        (">> topk(k=9)", "expected name, found >>"),
        ("topk(9)", "expected name, found 9"),
        ("topk(k=9,)", r"expected name, found \)"),
        ("topk(k=9 fraction=1)", "expected ,, found fraction"),
        ("topk(k==9)", "expected a value, found ="),
        ("topk(k=9, k=9)", "k is given twice"),
        ("topk(k=--9)", "unexpected '--9"),
        ("topk(k=9); f16()", "unexpected ';"),
        ("topk(k=0x10)", "expected ,, found x10"),
        ("topk(fraction=nan)", r"expected \("),
        ("topk(fraction=inf)", r"expected \("),
        ("topk(k=\u0663)", "unexpected"),
        ("topk(k=9\0)", "unexpected"),
        ('topk(k="9', "unexpected"),
    ],
)
def test_grammar_errors_say_what_was_expected(text: str, what: str) -> None:
    with pytest.raises(SpecError, match=what) as caught:
        parse(text)
    assert "write for example 'topk(fraction=0.01) >> natural()'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("topk(size=9)", "topk has no setting 'size'; its settings: fraction, k"),
        ("f16(k=9)", "f16 has no setting 'k'; its settings: none"),
        ("shrunk()", "shrunk needs inner"),
        ("by_size(small=f16())", "by_size needs threshold, large"),
        ("topk(k=1.5)", r"topk\(k\) takes int \| None, found 1.5"),
        ("topk(k=true)", r"topk\(k\) takes int \| None, found True"),
        ('topk(k="9")', r"topk\(k\) takes int \| None, found '9'"),
        ("topk(k=f16())", r"topk\(k\) takes int \| None, found F16"),
        ("topk(fraction=false)", "takes float"),
        ("shrunk(inner=1)", r"shrunk\(inner\) takes Compressor, found 1"),
        ("topk(name=1)", "no setting 'name'"),
        ("topk(__class__=1)", "no setting '__class__'"),
    ],
)
def test_settings_that_do_not_fit(text: str, what: str) -> None:
    with pytest.raises(SpecError, match=what):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "topk()",
        "topk(k=9, fraction=0.1)",
        "topk(k=0)",
        "topk(k=-9)",
        "topk(fraction=0)",
        "topk(fraction=1.01)",
        "topk(fraction=1e999)",
        "topk(fraction=1" + "0" * 400 + ")",
        "svd(rank=0)",
        "rsvd(oversampling=-1)",
        "powersgd(num_iterations=0)",
        "powersgd(num_iterations=1000000000)",
        "rsvd(num_iterations=1000000000)",
        "sparse_dithering(nu=1)",
        "sparse_dithering(nu=1e-300)",
        "sparse_dithering_unbiased(omega=1e999)",
        "sparse_dithering_unbiased(omega=0)",
        "by_size(threshold=-1, small=f16(), large=f16())",
        "natural() >> f16()",
        "shrunk(inner=randk(k=3)) >> f16()",
    ],
)
def test_settings_out_of_range(text: str) -> None:
    with pytest.raises(SettingError):
        parse(text)


def test_an_unknown_compressor_is_told_what_there_is() -> None:
    for name in ("topk2", "then", "import", "Compressor"):
        with pytest.raises(SpecError, match=f"no compressor '{name}'") as caught:
            parse(f"{name}()")
        assert all(known in str(caught.value) for known in COMPRESSORS)


def test_length_and_depth_are_bounded() -> None:
    with pytest.raises(SpecError, match=f"at most {MAX_LENGTH} are read"):
        parse("topk(k=9)" + " " * MAX_LENGTH)
    with pytest.raises(SpecError, match=f"at most {MAX_LENGTH} are read"):
        parse_rules("*: f16();" * MAX_LENGTH)
    for opening, inner, closing in [
        ("identity() >> ", "f16()", ""),
        ("shrunk(inner=", "randk(k=1)", ")"),
    ]:
        deepest = opening * MAX_DEPTH + inner + closing * MAX_DEPTH
        assert str(parse(deepest)) == deepest
        with pytest.raises(SpecError, match=f"nested deeper than {MAX_DEPTH}"):
            parse(opening + deepest + closing)
    with pytest.raises(SpecError, match="nested deeper"):
        parse("shrunk(inner=" * 300)


def test_rules() -> None:
    rules = parse_rules("*running_*: exact(); *.bias:f16() ;*: topk(k=9) >> natural()")
    assert rules == [
        Rule("*running_*", Identity()),
        Rule("*.bias", F16()),
        Rule("*", Then(TopK(k=9), Natural())),
    ]
    assert isinstance(rules, list)
    text = "; ".join(map(str, rules))
    assert text == "*running_*: identity(); *.bias: f16(); *: topk(k=9) >> natural()"
    assert parse_rules(text) == rules


def test_a_bare_compressor_is_no_rule() -> None:
    assert parse_rules("topk(k=9)") == TopK(k=9)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("*: f16();", "expected 'pattern: compressor', found ''"),
        ("f16(); *: f16()", r"expected 'pattern: compressor', found 'f16\(\)'"),
        (": f16()", "expected 'pattern: compressor'"),
        ("*:", "expected name, found the end"),
        ("*: f16() *: f16()", "unexpected"),
        ("*: nothing()", "no compressor 'nothing'"),
    ],
)
def test_rule_errors(text: str, what: str) -> None:
    with pytest.raises(SpecError, match=what):
        parse_rules(text)


def test_the_package_gives_both_readers() -> None:
    assert fll.parse is parse
    assert fll.parse_rules is parse_rules
