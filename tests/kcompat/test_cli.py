"""The command line in this process: what is printed, the JSON to the letter, every exit code."""

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from kcompat import cli, cli_memory, cli_sources
from kcompat.btf import RUNNING
from kcompat.cli import main
from kcompat.cli_output import confidence, shortened
from kcompat.errors import KcompatError, Missing, Unsupported
from kcompat.fields import CATALOGUE, find
from kcompat.kernel import Kernel
from kcompat.offsets import Offset, State
from offset_db.db import Database
from tests.kcompat.cli_tools import BUILD_ID, RELEASE, check_field, check_offsets, one_line, sock_common, vmlinux


@pytest.fixture
def db(tmp_path):
    return tmp_path / "offsets.db"


@pytest.fixture
def run(db):
    """run(arguments...) -> the result, with a database of its own."""
    return lambda *arguments: CliRunner().invoke(main, ["--db", str(db), *map(str, arguments)])


@pytest.fixture
def kernel_file(tmp_path):
    return vmlinux(tmp_path / "vmlinux", btf=sock_common())


def remember(db, *offsets, kernel=None):
    with Database.open(db) as opened:
        opened.record(kernel or Kernel.running(), offsets)


def test_version_is_the_packages(run):
    done = run("--version")

    assert done.exit_code == 0 and done.stdout.startswith("kcompat ")


def test_an_unknown_command_is_a_usage_error(run):
    assert run("frobnicate").exit_code == 2


def test_help_documents_every_exit_status(run):
    said = run("--help").stdout

    for code in ("0", "1", "2", "3", "4", "130"):
        assert f"\n    {code} " in said


def test_the_programs_and_dialects_are_those_there_are():
    from collector import pipeline
    from kcompat import dialect

    assert pipeline.programmed() == cli.PROGRAMMED
    assert cli.DIALECTS == dialect.DIALECTS


def test_the_backends_are_the_guessers():
    from guessers.hooks import BACKENDS

    assert cli.BACKENDS == BACKENDS


def test_btf_of_a_file_is_for_that_files_kernel(run, kernel_file):
    done = run("resolve", "--source", "btf", "--vmlinux", kernel_file, "--json", "skc_dport")

    document = json.loads(done.stdout)
    check_offsets(document)
    assert document["kernel"]["build_id"] == BUILD_ID.hex() and document["kernel"]["release"] == "6.1.0-test"
    assert [(f["offset"], f["width"], f["source"]) for f in document["fields"]] == [(40, 2, "btf")]
    assert done.exit_code == 0


def test_a_raw_btf_file_will_do(run, tmp_path):
    path = tmp_path / "5.4.0-test.btf"
    path.write_bytes(sock_common())

    done = run("resolve", "--source", "btf", "--vmlinux", path, "--json", "skc_num")

    assert json.loads(done.stdout)["kernel"]["release"] == "5.4.0-test"
    assert json.loads(done.stdout)["fields"][0]["offset"] == 42


def test_auto_on_another_kernels_file_never_answers_for_the_running_one(run, kernel_file):
    done = run("resolve", "--vmlinux", kernel_file, "--json", "skc_dport", "srtt_us")

    by_member = {f["member"]: f for f in json.loads(done.stdout)["fields"]}
    assert by_member["skc_dport"]["offset"] == 40
    assert by_member["srtt_us"]["state"] == "unknown"
    assert done.exit_code == 1


def test_what_was_learnt_is_remembered_under_its_source(run, kernel_file, db):
    run("resolve", "--vmlinux", kernel_file, "skc_dport")

    second = run("resolve", "--vmlinux", kernel_file, "--json", "skc_dport")
    assert json.loads(second.stdout)["fields"][0]["source"] == "db"
    with Database.open(db) as opened:
        (remembered,) = opened.show("6.1.0-test")
    assert [(s.offset.source, s.offset.offset) for s in remembered.stored] == [("btf", 40)]


def test_no_record_remembers_nothing(run, kernel_file, db):
    run("resolve", "--no-record", "--source", "btf", "--vmlinux", kernel_file, "skc_dport")

    assert not db.exists()


@pytest.mark.parametrize("options", [("--no-record",), ("--source", "db")])
def test_what_records_nothing_makes_no_database_and_leaves_a_corrupt_one(run, kernel_file, db, options):
    raw = b"SQLite format 3\0" + b"\xff" * 5000
    command = "resolve", *options, "--vmlinux", kernel_file, "skc_dport"
    status = int("db" in options)

    done = run(*command)
    assert done.exit_code == status and "Traceback" not in done.output and not db.exists()
    db.write_bytes(raw)
    done = run(*command)
    assert done.exit_code == status and f"{db}: " in done.stderr and "left as it is" in done.stderr
    assert db.read_bytes() == raw and not list(db.parent.glob("*.corrupt-*"))


def test_where_offsets_came_from_is_one_line_on_stderr(run, kernel_file, db):
    done = run("resolve", "--source", "btf", "--vmlinux", kernel_file, "skc_dport", "skc_num")

    assert one_line(done.stderr) == f"kcompat: 2 fields from BTF; recorded in {db}"


def test_a_quiet_one_says_nothing_and_remembers(run, kernel_file, db):
    done = run("resolve", "--quiet", "--vmlinux", kernel_file, "skc_dport")

    assert (done.exit_code, done.output) == (0, "")
    assert "skc_dport" in run("db", "show", "6.1.0-test").stdout
    assert run("resolve", "--quiet", "--vmlinux", kernel_file, "srtt_us").exit_code == 1


def test_it_remembers_where_a_collector_with_that_configuration_looks(run, kernel_file, db, tmp_path):
    elsewhere, configuration = tmp_path / "fleet.db", tmp_path / "kcompat.toml"
    # What the collector is told to ask alone it asks itself: this fills the database.
    configuration.write_text(f'[offsets]\ndb = "{elsewhere}"\nsource = "db"\n')
    told = ["resolve", "--config", str(configuration), "--vmlinux", str(kernel_file), "skc_dport"]
    done = CliRunner().invoke(main, told)

    assert one_line(done.stderr) == f"kcompat: 1 field from BTF; recorded in {elsewhere}" and not db.exists()
    assert run(*told).exit_code == 0 and db.exists()


def test_the_file_of_a_collector_s_configuration_must_be_of_the_kernel_that_runs(run, kernel_file, tmp_path):
    configuration = tmp_path / "kcompat.toml"
    configuration.write_text(f'[offsets]\nvmlinux = "{kernel_file}"\n')
    done = run("resolve", "--config", configuration, "skc_dport")

    assert done.exit_code == 1 and "is running" in one_line(done.stderr)


def test_a_hit_is_verified_and_says_so(run, db, monkeypatch):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"))
    monkeypatch.setattr(cli_sources, "_verify", lambda kernel, offsets: {o.field: True for o in offsets})

    done = run("resolve", "skc_dport")

    assert one_line(done.stderr) == "kcompat: 1 field from the database, verified by one event"


def test_only_an_absence_that_was_guessed_is_doubted(monkeypatch):
    """No event is needed to see that it is wrong; BTF has looked at the struct."""
    monkeypatch.setattr("guessers.absence.is_there", lambda field: True)
    told = [Offset.absent(find("skc_net"), "guess", "not set"), Offset.absent(find("skc_cookie"), "btf", "no member")]

    assert cli_sources._verify(Kernel.running(), told) == {find("skc_net"): False}


def test_a_refuted_hit_is_asked_of_the_next_source(run, db, monkeypatch):
    field = find("skc_dport")
    remember(db, Offset.known(field, 999, "guess"))
    monkeypatch.setattr(cli_sources, "_verify", lambda kernel, offsets: {field: False})
    monkeypatch.setattr(cli_sources, "_resolvers", only("db", Fake("btf", [Offset.known(field, 12, "btf")])))

    done = run("resolve", "--json", "skc_dport")

    assert json.loads(done.stdout)["fields"][0]["offset"] == 12
    assert "refuted by an event: quarantined" in done.stderr


class Fake:
    """A source of the given answers, or of the given error."""

    def __init__(self, name, answers=(), error=None):
        self.name, self.answers, self.error = name, answers, error

    def resolve(self, kernel, wanted):
        if self.error:
            raise self.error
        return [a for a in self.answers if a.field in wanted]


def only(*sources):
    """Stands in for the list of sources: "db" is the real database, the rest is as given."""
    from offset_db.resolver import DatabaseResolver

    def resolvers(request, foreign, unproved, db, guesser):
        return [DatabaseResolver(db, cli_sources._verify) if s == "db" else s for s in sources]
    return resolvers


@pytest.mark.parametrize("error, code", [
    (KcompatError("no"), 1), (Missing("no root"), 2), (Unsupported("lockdown"), 3), (KeyboardInterrupt(), 130)])
def test_the_exit_status_tells_what_kind_of_failure(run, monkeypatch, error, code):
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", error=error)))

    done = run("resolve")

    assert done.exit_code == code
    assert code == 130 or one_line(done.stderr) == f"kcompat: {error}"


def test_the_last_failure_counts_when_no_source_could_be_used(run, monkeypatch):
    monkeypatch.setattr(cli_sources, "_resolvers",
                        only(Fake("btf", error=Missing("no BTF")), Fake("guess", error=Unsupported("no BPF"))))

    assert run("resolve").exit_code == 3


def test_one_source_that_answers_makes_up_for_one_that_cannot(run, monkeypatch):
    answers = [Offset.known(f, 8 * n, "guess") for n, f in enumerate(CATALOGUE)]
    monkeypatch.setattr(cli_sources, "_resolvers",
                        only(Fake("btf", error=Missing("no BTF")), Fake("guess", answers)))

    done = run("resolve")

    assert done.exit_code == 0 and one_line(done.stderr).startswith(f"kcompat: {len(CATALOGUE)} fields from the guess")


def test_a_message_of_several_lines_becomes_one(run, monkeypatch):
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", error=KcompatError("one\n  two"))))

    assert one_line(run("resolve").stderr) == "kcompat: one two"


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", error=ZeroDivisionError("bug"))))

    assert isinstance(run("resolve").exception, ZeroDivisionError)


@pytest.mark.parametrize("answer", [
    Offset.absent(find("skc_dport"), "guess", "not there"), Offset.known(find("skc_dport"), 0, "guess")])
def test_absent_is_an_answer_too(run, monkeypatch, answer):
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", [answer])))

    assert run("resolve", "skc_dport").exit_code == 0


def test_an_ambiguous_field_exits_with_1_and_shows_no_offset(run, monkeypatch):
    answer = Offset.unknown(find("skc_dport"), "guess", "2 places agree with all 9 samples", candidates=(12, 14))
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", [answer])))

    done = run("resolve", "skc_dport")

    assert done.exit_code == 1
    assert "ambiguous" in done.stdout and "2 places agree with all 9 samples" in done.stdout
    check_field(json.loads(run("resolve", "--json", "skc_dport").stdout)["fields"][0])


def test_unknown_fields_are_named_before_anything_is_done(run, db):
    done = run("resolve", "sock_common.nope")

    assert done.exit_code == 1 and "'sock_common.nope' is not in the catalogue" in one_line(done.stderr)
    assert not db.exists()


def test_a_field_named_twice_is_answered_once(run, kernel_file):
    done = run("resolve", "--json", "--vmlinux", kernel_file, "skc_dport", "sock_common.skc_dport")

    assert len(json.loads(done.stdout)["fields"]) == 1


def test_dwarf_needs_a_file(run):
    done = run("resolve", "--source", "dwarf")

    assert done.exit_code == 2 and "--vmlinux" in one_line(done.stderr)


def test_another_kernel_cannot_be_guessed(run, kernel_file):
    done = run("resolve", "--source", "guess", "--vmlinux", kernel_file)

    assert done.exit_code == 1 and "only the running kernel" in one_line(done.stderr)


@pytest.mark.parametrize("command", [["render", "netflow"], ["collect", "--duration", "1"]])
def test_programs_are_never_built_from_another_kernels_file(run, kernel_file, command):
    done = run(*command, "--vmlinux", kernel_file)

    assert done.exit_code == 1 and str(kernel_file) in one_line(done.stderr) and BUILD_ID.hex() in done.stderr


def test_disagreement_is_said_when_it_comes_up(run, db, monkeypatch):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"))
    monkeypatch.setattr(cli_sources, "_resolvers", only(Fake("guess", [Offset.known(find("skc_dport"), 16, "guess")])))

    done = run("resolve", "skc_dport")

    assert "sources disagree on sock_common.skc_dport: see `kcompat db disagreements`" in done.stderr
    said = run("db", "disagreements", "--json").stdout
    (one,) = json.loads(said)["disagreements"]
    assert (one["struct"], one["member"]) == ("sock_common", "skc_dport")
    assert {(a["source"], a["offset"]) for a in one["answers"]} == {("btf", 12), ("guess", 16)}
    for answer in one["answers"]:
        check_field(answer)
    assert "btf: 12, guess: 16" in run("db", "disagreements").stdout


class FakeGuesser(Fake):
    """A guess that found these modules loaded, when it was done."""

    def __init__(self, modules, *answers):
        super().__init__("guess", answers)
        seen = replace(Kernel.running(), modules=modules)
        self.last = SimpleNamespace(recording=SimpleNamespace(kernel=seen), stats=SimpleNamespace(as_json=dict))


@pytest.mark.parametrize(("modules", "is_module", "held"), [
    ({"nf_conntrack": "aa"}, True, "aa"), ({}, True, ...), ({}, False, None)])
def test_a_guess_is_remembered_of_the_module_that_it_loaded(run, db, monkeypatch, modules, is_module, held):
    """One that shows no build is not remembered, unless it is no module at all."""
    status, dport = find("nf_conn.status"), find("skc_dport")
    guesser = FakeGuesser(modules, Offset.known(status, 128, "guess"), Offset.known(dport, 12, "guess"))
    monkeypatch.setattr(cli_sources, "_guesser", lambda backend: guesser)
    monkeypatch.setattr(cli_sources, "_resolvers", only(guesser))
    monkeypatch.setattr(cli_memory, "is_module", lambda name: is_module)

    assert run("resolve", "nf_conn.status").exit_code == run("resolve", "skc_dport").exit_code == 0

    with Database.open(db) as opened:
        builds = {s.offset.field: s.module_build_id for s in opened.offsets(Kernel.running())}
    assert builds.pop(dport) is None and builds.get(status, ...) == held


def test_no_disagreements(run, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"))

    assert run("db", "disagreements").stdout == "no disagreements\n"
    assert json.loads(run("db", "disagreements", "--json").stdout) == {"disagreements": []}


def test_show_lists_kernels_and_a_release_shows_its_fields(run, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"), Offset.unknown(find("srtt_us"), "guess", "no sample"))

    assert RELEASE in run("db", "show").stdout and "1 btf, 1 guess" in run("db", "show").stdout
    said = run("db", "show", RELEASE).stdout
    assert "sock_common.skc_dport" in said and Kernel.running().key in said
    assert run("db", "show", Kernel.running().key).stdout == said


def test_show_in_json_is_complete(run, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"), Offset.absent(find("skc_cookie"), "btf", "no such member"))

    (kernel,) = json.loads(run("db", "show", "--json").stdout)["kernels"]

    assert list(kernel) == ["kernel", "first_seen", "last_seen", "fields"]
    assert kernel["kernel"] == Kernel.running().as_json()
    for one in kernel["fields"]:
        check_field(one)
        assert list(one)[11:] == ["recorded_at", "verified_at", "quarantined_at", "quarantine_reason"]
    assert {f["state"] for f in kernel["fields"]} == {"known", "absent"}


@pytest.mark.parametrize("command", [["db", "show"], ["db", "disagreements"]])
def test_no_database_is_said_and_none_is_made(run, db, command):
    done = run(*command)

    assert done.exit_code == 1 and str(db) in one_line(done.stderr)
    assert not db.exists()


def test_a_kernel_that_is_not_remembered_is_named(run, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"))

    done = run("db", "show", "3.10.0-nope")

    assert done.exit_code == 1 and "'3.10.0-nope'" in one_line(done.stderr)


def test_the_database_alone_with_nothing_in_it_says_how_to_fill_it(run, db):
    done = run("resolve", "--source", "db")

    assert done.exit_code == 1 and "kcompat guess" in one_line(done.stderr)


def test_info_in_json_has_identity_capabilities_and_the_four_sources(run, db):
    done = run("info", "--json")

    document = json.loads(done.stdout)
    assert list(document) == ["kernel", "capabilities", "sources"]
    assert document["kernel"]["release"] == RELEASE
    assert [s["name"] for s in document["sources"]] == ["db", "btf", "dwarf", "guess"]
    for one in (*document["capabilities"], *document["sources"]):
        assert one["state"] in ("yes", "no", "can't tell") and one["reason"]
        assert one["state"] == "yes" or one["advice"], one
    assert done.exit_code == 0 and not db.exists()


def test_info_has_all_of_the_kernels_banner(run):
    assert f"version   {Kernel.running().version}\n" in run("info").stdout


def test_info_says_of_the_database_what_it_holds(run, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"))

    assert f"1 of {len(CATALOGUE)} fields of this kernel" in " ".join(run("info").stdout.split())


def test_tables_stay_under_80_columns_and_without_colour(run, kernel_file, db):
    remember(db, Offset.known(find("skc_dport"), 12, "btf"), Offset.known(find("skc_dport"), 16, "guess"))

    for command in (["info"], ["resolve", "--vmlinux", kernel_file], ["db", "show"], ["db", "show", RELEASE],
                    ["db", "disagreements"]):
        said = run(*command).stdout
        assert said.endswith("\n") and "\x1b" not in said
        # The banner is one line, whole, for whoever looks for something in it.
        lines = [line for line in said.splitlines() if not line.startswith("version   ")]
        assert max(map(len, lines)) < 80, said


@pytest.mark.parametrize("option, value", [
    ("--interval", "0"), ("--interval", "99999"), ("--ephemeral-port", "70000"), ("--exclude", "cidr=nonsense"),
    ("--exclude", "nonsense"), ("--output", "nonsense"), ("--output", "jsonl:/nowhere/at/all"), ("--hostname", ""),
    ("--tags", "nonsense"), ("--set", "nonsense"), ("--set", "interval=1"), ("--enabled", "ebpf-trace"),
    ("--config", "/nowhere.toml")])
def test_a_bad_setting_of_collect_is_named_before_root_is_needed(run, db, option, value):
    done = run("collect", option, value)

    assert done.exit_code in (1, 2)
    assert value.partition(":")[2] in one_line(done.stderr)
    assert not db.exists()


@pytest.mark.parametrize("arguments", [
    ["collect", "--datasets", "smtpflow"], ["collect", "--duration", "0"], ["collect", "--interval", "x"],
    ["render", "smtpflow"], ["resolve", "--source", "nowhere"], ["guess", "--backend", "uprobe"],
    ["resolve", "--quiet", "--json"]])
def test_a_wrong_word_is_a_usage_error(run, arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("value, shown", [(1.0, "1"), (0.0, "-"), (0.9999999999, "0.999999"), (0.5, "0.5")])
def test_a_confidence_that_is_not_1_never_looks_like_it(value, shown):
    assert confidence(Offset(find("skc_dport"), State.KNOWN, "guess", 1, confidence=value)) == shown


def test_runs_of_equal_numbers_are_shortened():
    assert shortened([3, 3, 3, 2, 1, 1]) == ["3 (x3)", 2, "1 (x2)"]


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_guess_prints_the_design_and_explains_itself(run):
    document = json.loads(run("guess", "--json").stdout)

    check_offsets(document)
    assert {f["source"] for f in document["fields"]} == {"guess"} and document["stats"]["connections"] > 0
    assert [f"{f['struct']}.{f['member']}" for f in document["fields"]] == [f.name for f in CATALOGUE]
    told = run("guess", "--explain", "srtt_us").stdout
    for word in ("verdict", "offset", "seen through", "samples", "candidates", "held out", "by chance", "permutation",
                 "runner-up"):
        assert f"  {word} " in told
    assert max(map(len, told.splitlines())) < 80


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_what_was_recorded_explains_itself_as_it_did_live(run, tmp_path):
    path = tmp_path / "here.guess"
    live = run("guess", "--explain", "srtt_us", "--record", path)
    assert f"{path}: " in live.stderr and " kB" in live.stderr
    assert run("guess", "--explain", "srtt_us", "--replay", path).stdout == live.stdout
    assert "masked" in run("guess", "--record", path, "--mask-pointers").stderr


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_explain_in_json_adds_the_evidence(run):
    (one,) = json.loads(run("guess", "--explain", "skc_dport", "--json").stdout)["fields"]

    check_field(one)
    assert one["member"] == "skc_dport" and one["evidence"]["samples"] > 0


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_render_prints_the_c_with_this_kernels_offsets(run):
    done = run("render", "netflow")

    assert done.exit_code == 0
    assert "#define OFFSET_sock_common__skc_dport 12\n" in done.stdout and "SPDX-License-Identifier" in done.stdout


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_raw_btf_that_an_event_refutes_is_not_used(run, tmp_path):
    path = tmp_path / "whose.btf"
    path.write_bytes(sock_common())

    done = run("render", "netflow", "--source", "btf", "--vmlinux", path)

    assert done.exit_code == 1
    assert f"{path}: not of the running kernel" in one_line(done.stderr)
    assert "sock_common.skc_dport" in done.stderr or "of its offsets" in done.stderr


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0 or not RUNNING.exists(), reason="not root, or no BTF")
def test_raw_btf_of_the_running_kernel_will_do(run, tmp_path, db):
    path = tmp_path / "ours.btf"
    path.write_bytes(RUNNING.read_bytes())

    done = run("render", "netflow", "--source", "btf", "--vmlinux", path)

    # Of what no event shows it says nothing.
    assert done.exit_code == 0 and re.search(r"\d+ fields from BTF; \d+ unknown; recorded in", one_line(done.stderr))
    with Database.open(db) as opened:
        (kernel,) = opened.kernels()
        assert kernel.release == RELEASE
        known = [s for s in opened.offsets(kernel) if s.offset.state is State.KNOWN]
    assert known and all(s.offset.evidence["tested"] for s in known)


def test_render_judges_every_program_by_an_old_kernels_bpf(run):
    done = run("render", "netflow", "--source", "btf", "--dialect", "4.4")
    assert done.exit_code == 0
    assert re.search(r"\* kprobe__tcp_set_state: \d+ instructions, \d+ bytes of stack\n", done.stdout)
    assert " * rawtp__sys_exit: raw_tracepoint programs came with Linux 4.17" in done.stdout
