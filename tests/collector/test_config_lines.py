"""Lines of keys and elements; tomllib says which paths there are."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.config_keys import sample
from collector.config_lines import line_of, lines

TEXT = """\
a = 1 # [no.table]
"q.\\u00e9" = '''
[neither]
'''
b.c . 'd' = [ # a list
  "x, ]", [1,
    {e = 1, f.g = []}], # and more

  1979-05-27 07:32:00, 2.5,
]
empty = []
none = {}

[t]
u = {v = [{w = "}"}, {w = \"\"\"
]\"\"\"}], x = -inf}
[[l]]
m = 1
[l.n]
o = 2
  [[l]]
[[l.p]]
q = 3
[[l.p]]
[l.p.r]
s = "\\"" # "
"""


def paths(tree, path=()):
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, one in inner:
        yield from paths(one, (*path, name))


@pytest.mark.parametrize("text", [TEXT, sample(), "", "\n", "a=1", TEXT.replace("\n", "\r\n")])
def test_the_paths_are_tomllibs(text):
    assert set(lines(text)) == set(paths(tomllib.loads(text)))


values = st.recursive(st.sampled_from(['"a"', "'b]'", "1.5", '"""\n[x]\n"""', "[]", "{}", "1979-05-27T07:32:00Z"]),
                      lambda inner: st.lists(inner, max_size=3).map(lambda some: "[\n" + " ,\n".join(some) + "\n]"),
                      max_leaves=6)


@given(st.lists(st.tuples(st.sampled_from(["", "[t{}]\n", "[[l]]\n", "[[l.m]]\n", "# c\n", "\n"]), values), max_size=8))
def test_the_paths_are_tomllibs_of_whatever_is_written(some):
    text = "".join(f"{head.format(at)}k{at} = {value}\n" for at, (head, value) in enumerate(some))
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(lines(text)) == set(paths(tree))


@pytest.mark.parametrize(("path", "line"), [
    (("a",), 1), (("q.\u00e9",), 2), (("b",), 5), (("b", "c", "d", 0), 6), (("b", "c", "d", 1, 0), 6),
    (("b", "c", "d", 1, 1, "f", "g"), 7), (("b", "c", "d", 2), 9), (("b", "c", "d", 3), 9), (("t",), 14),
    (("t", "u", "x"), 16), (("l", 0, "n", "o"), 20), (("l", 1), 21), (("l", 1, "p", 1, "r", "s"), 26),
    (("b", "c", "d", 9), 5), (("l", 1, "x"), 21), (("nowhere",), 1)])
def test_a_line_is_where_it_is_first_said(path, line):
    assert line_of(TEXT, path) == line
