"""Rules that hide parts of paths and command lines: what is matched is gone, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.redaction import Redactions
from kcompat.errors import KcompatError

PATHS = Redactions.parse([r"path=/users/([^/]+)(?:/keys/([^/]+))?"])
COMMANDS = Redactions.parse([r"command=(?i)--password[= ]\S+", r"command=(token)=(\w+(\d)?)",
                             r"command =(?<= ) (?=sesame)"])


@pytest.mark.parametrize(("path", "shown"), [
    ("/users/ada/orders", "/users/***/orders"), ("/users/ada/keys/k1/x", "/users/***/keys/***/x"),
    ("/health", "/health"), ("/users/", "/users/"), ("/a/users/b", "/a/users/***")])
def test_of_an_expression_with_groups_they_alone_are_hidden(path, shown):
    assert PATHS.path(path) == shown


@pytest.mark.parametrize(("command", "shown"), [
    ("mysql --Password=s3cret -u root", "mysql *** -u root"), ("curl token=abc7", "curl ***=***"),
    ("open sesame; open sesame", "open sesame; open sesame"), ("open  sesame", "open ***sesame"),
    ("/users/ada", "/users/ada")])
def test_all_that_is_matched_is_hidden(command, shown):
    assert COMMANDS.command(command) == shown


@pytest.mark.parametrize(("rule", "command", "shown"), [
    (r"password(?=[= ](\S+))", "mysql --password=hunter2 -h x", "mysql --password=*** -h x"),
    (r"(?<=key (\w{3}))\w+", "key abcdef", "key ***def"), (r"(a(b))c", "xabcabc", "x***c***c"),
    (r"(?=(ab))a(bc)", "xabcd", "x***d")])
def test_a_group_is_hidden_wherever_it_looks(rule, command, shown):
    assert Redactions.parse([f"command={rule}"]).command(command) == shown


@given(st.text(), st.sampled_from(["path", "command"]))
def test_without_rules_nothing_changes_and_an_empty_match_hides_nothing(text, kind):
    for rules in ((), [f"{kind}=x*y{{99}}|"]):
        assert getattr(Redactions.parse(rules), kind)(text) == text


@given(st.lists(st.sampled_from(["secret", "a", "/", " "]), max_size=20).map("".join))
def test_a_secret_never_stays(text):
    assert "secret" not in Redactions.parse(["path=(secret)"]).path(text)
    assert "secret" not in Redactions.parse(["command=secret"]).command(text)


@pytest.mark.parametrize(("rule", "words"), [("path", "expected one of"), ("path=", "expected one of"),
                                             ("url=x", "expected one of"), ("command=(", "missing \\)")])
def test_a_rule_that_is_none_is_refused(rule, words):
    with pytest.raises(KcompatError, match=f"redaction {rule!r}: .*{words}".replace("(': ", r"\(': ")):
        Redactions.parse([rule])
