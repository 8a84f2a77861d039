import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcompat.errors import UnknownField
from kcompat.fields import CATALOGUE, find
from kcompat.offsets import Offset, Offsets
from kcompat.template import defines, needed, read_source, render, required

DPORT, NUM, COOKIE, PROTOCOL = map(find, ("skc_dport", "skc_num", "skc_cookie", "sk_protocol"))
KNOWN = Offsets([Offset.known(DPORT, 12, "btf"), Offset.known(NUM, 14, "guess"),
                 Offset.absent(COOKIE, "guess", "no such member"),
                 Offset.unknown(PROTOCOL, "guess", "2 places agree", candidates=(540, 1200))])


def test_a_known_field_is_three_macros():
    assert defines(Offsets([Offset.known(DPORT, 12, "btf")])).splitlines() == [
        "#define OFFSET_sock_common__skc_dport 12",
        "#define WIDTH_sock_common__skc_dport 2",
        "#define HAVE_sock_common__skc_dport 1",
    ]


def test_unknown_and_absent_fields_have_no_macro_at_all():
    text = defines(KNOWN)
    assert "skc_cookie" not in text
    assert "sk_protocol" not in text


def test_a_bitfield_inside_a_byte_has_none_either():
    assert "sk_type" not in defines(Offsets([Offset.known(find("sk_type"), 538, "btf", bit_offset=3, bit_size=5)]))


def test_the_same_offsets_make_the_same_text_whoever_found_them():
    texts = {defines(Offsets([Offset.known(DPORT, 12, source)])) for source in ("btf", "guess", "db")}
    assert len(texts) == 1


def test_dots_of_a_member_are_underscores_of_its_macro():
    assert "#define OFFSET_net__ns__inum 136" in defines(Offsets([Offset.known(find("net.ns.inum"), 136, "btf")]))


@given(st.sets(st.sampled_from(CATALOGUE)))
def test_every_field_that_is_read_is_required_in_any_spelling_of_the_catalogue(fields):
    source = "".join(f"READ(&value, base, {field.macro});\n" for field in fields)
    assert set(required(source)) == fields


@pytest.mark.parametrize("guard", [
    "#ifdef HAVE_{}", "#if HAVE_{}", "#if defined(HAVE_{})", "# ifdef  HAVE_{}", "#if HAVE_{} && X",
    "#ifdef HAVE_{} /* said why */", "#ifdef HAVE_{} // said why", "#if \\\n HAVE_{}"])
def test_a_guarded_field_is_not_required(guard):
    source = f"{guard.format(COOKIE.macro)}\nREAD(&c, sk, {COOKIE.macro});\n#endif\n"
    assert needed(source) == ((), (COOKIE,))


@pytest.mark.parametrize("guard", [
    "#ifndef HAVE_{}", "#if !HAVE_{}", "#if HAVE_{} || X", "#if !defined(HAVE_{})", "#ifdef OTHER", "#if 1"])
def test_other_guards_guard_nothing(guard):
    source = f"{guard.format(COOKIE.macro)}\nREAD(&c, sk, {COOKIE.macro});\n#endif\n"
    assert required(source) == (COOKIE,)


def test_a_guard_ends_at_else_and_at_endif():
    guarded = f"#ifdef HAVE_{COOKIE.macro}\nint x;\n"
    assert required(f"{guarded}#else\nREAD(&c, sk, {COOKIE.macro});\n#endif\n") == (COOKIE,)
    assert required(f"{guarded}#elif Y\nREAD(&c, sk, {COOKIE.macro});\n#endif\n") == (COOKIE,)
    assert required(f"{guarded}#endif\nREAD(&c, sk, {COOKIE.macro});\n") == (COOKIE,)


def test_guards_nest():
    source = (f"#ifdef HAVE_{COOKIE.macro}\n#ifdef X\nREAD(&c, sk, {COOKIE.macro});\nREAD(&d, sk, {DPORT.macro});\n"
              "#endif\n#endif\n")
    assert needed(source) == ((DPORT,), (COOKIE,))


def test_a_field_both_guarded_and_not_is_required():
    source = f"#ifdef HAVE_{COOKIE.macro}\nREAD(&c, sk, {COOKIE.macro});\n#endif\nREAD(&c, sk, {COOKIE.macro});\n"
    assert needed(source) == ((COOKIE,), ())


@pytest.mark.parametrize("comment", ["/* {} */", "// {}\n", "/*\n * {}\n */", "/* a */ /* {} */"])
def test_comments_require_nothing(comment):
    assert required(comment.format(f"READ(&c, sk, {COOKIE.macro})")) == ()


def test_names_that_are_no_fields_require_nothing():
    assert required("rawtp__inet_sock_set_state(sk__x, a__b);") == ()


def test_rendered_c_has_constants_then_the_offsets_it_needs_then_itself():
    source = f"int x; READ(&x, sk, {NUM.macro});\n"
    text = render("flows", source, KNOWN, {"SLOTS": 64, "LIMIT": 3})
    assert text.startswith("#define LIMIT 3\n#define SLOTS 64\n#define OFFSET_sock_common__skc_num 14\n")
    assert text.endswith(source)
    assert "skc_dport" not in text


def test_a_soft_field_is_given_when_known_and_left_out_when_not():
    source = "".join(f"#ifdef HAVE_{f.macro}\nREAD(&x, sk, {f.macro});\n#endif\n" for f in (DPORT, COOKIE, PROTOCOL))
    text = render("flows", source, KNOWN).removesuffix(source)
    assert "skc_dport" in text
    assert "skc_cookie" not in text
    assert "sk_protocol" not in text


def test_offsets_come_in_catalogue_order():
    one = render("flows", f"{NUM.macro} {DPORT.macro}", KNOWN)
    other = render("flows", f"{DPORT.macro} {NUM.macro}", KNOWN)
    assert one.splitlines()[:6] == other.splitlines()[:6]


def test_what_is_missing_is_named_with_the_reasons_before_any_compiler_runs():
    with pytest.raises(UnknownField) as caught:
        render("flows", f"{DPORT.macro} {COOKIE.macro} {PROTOCOL.macro} {find('sk_mark').macro}", KNOWN)
    assert caught.value.fields == ["sock_common.skc_cookie", "sock.sk_protocol", "sock.sk_mark"]
    message = str(caught.value)
    assert "no such member" in message
    assert "2 places agree" in message
    assert str(UnknownField("flows", ["a", "b", "c"], {"a": "no BTF", "c": "no BTF"})) == (
        "flows is not loaded: no known offset for a, c (no BTF); b")
    assert "skc_dport" not in message
    assert "\n" not in message


def test_a_source_in_pieces_is_read_as_one(tmp_path):
    (tmp_path / "whole.bpf.c").write_text('#include <kcompat/read.h>\nint a;\n#include "part.h"\nint c;\n')
    (tmp_path / "part.h").write_text("int b;\n")
    assert read_source(tmp_path / "whole.bpf.c") == "#include <kcompat/read.h>\nint a;\nint b;\nint c;\n"
