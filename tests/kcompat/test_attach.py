"""Where hooks are put, as far as it is seen without a kernel."""

import ctypes
import errno
import os
import re

import pytest

from kcompat import attach


def test_a_uprobe_goes_into_the_file_that_is_open_and_is_called_by_its_path(tmp_path, monkeypatch):
    pmu, asked = tmp_path / "uprobe", []
    (pmu / "format").mkdir(parents=True)
    (pmu / "type").write_text("9\n")
    (pmu / "format/retprobe").write_text("config:0\n")
    (tmp_path / "bash").write_text("first")
    monkeypatch.setattr(attach, "_UPROBE_PMU", pmu)
    monkeypatch.setattr(attach, "_attach_event", lambda program, name, kind, config, path, offset: asked.append(
        (name, kind, config, ctypes.string_at(path), offset)))
    path = str(tmp_path / "bash")
    with (tmp_path / "bash").open("rb") as file:
        attach.uprobe(3, path, 0x40, at_return=True, file=file.fileno())
        attach.uprobe(3, path, 0x40)
        name = f"{path}:0x40"
        assert asked == [(f"uretprobe:{name}", 9, 1, os.fsencode(f"/proc/self/fd/{file.fileno()}"), 0x40),
                         (f"uprobe:{name}", 9, 0, os.fsencode(path), 0x40)]


class Tracefs:
    """What tracefs does with the lines written to ``kprobe_events``; `busy` are in use."""

    def __init__(self, root, *lines):
        self.root, self.events, self.busy = root, root / "kprobe_events", set()
        self.events.write_text("".join(f"p:kprobes/{name} f\n" for name in lines))

    def append(self, path, line):
        assert path == self.events
        if line.startswith("-:"):
            name = line[2:].strip().partition("/")[2]
            if name in self.busy:
                raise OSError(errno.EBUSY, "busy")
            kept = [k for k in path.read_text().splitlines(True) if f"/{name} " not in k]
            if len(kept) == len(path.read_text().splitlines()):
                raise FileNotFoundError(errno.ENOENT, "no such event")
            path.write_text("".join(kept))
        else:
            directory = self.root / "events/kprobes" / line.partition("/")[2].partition(" ")[0]
            directory.mkdir(parents=True)
            (directory / "id").write_text("7\n")
            path.write_text(path.read_text() + line)

    def names(self):
        return re.findall(r"/(\S+) ", self.events.read_text())


@pytest.fixture
def tracefs(tmp_path, monkeypatch):
    def make(*lines):
        made = Tracefs(tmp_path, *lines)
        monkeypatch.setattr(attach, "tracefs", lambda: tmp_path)
        monkeypatch.setattr(attach, "_append", made.append)
        monkeypatch.setattr(attach, "_tidied", set())
        monkeypatch.setattr(attach, "_KPROBE_PMU", tmp_path / "none")
        monkeypatch.setattr(attach, "_attach_event", lambda *args: attach.Attachment("event", lambda: None))
        return made

    return make


DEAD = 1 << 30  # no pid is as high


def test_events_of_those_who_are_gone_are_taken_away_and_of_our_own_pid_before_us(tracefs):
    own = os.getpid()
    held = tracefs(f"kcompat_{DEAD}_3", f"kcompat_{own}_0", f"kcompat_{own}_01234567_1", f"kcompat_{own}_89abcdef_0",
                   "kcompat_1_01234567_0", "somebodys")
    held.busy.add(f"kcompat_{own}_89abcdef_0")  # another container's collector
    made = [attach.kprobe(3, "f") for _ in range(2)]
    assert held.names()[:3] == [f"kcompat_{own}_89abcdef_0", "kcompat_1_01234567_0", "somebodys"]
    mine = held.names()[3:]
    assert len(set(mine)) == 2 and all(re.fullmatch(rf"kcompat_{own}_[0-9a-f]{{8}}_\d+", name) for name in mine)
    for one in made:
        one.close()
    assert len(held.names()) == 3


def test_what_this_process_made_is_no_orphan(tracefs):
    held = tracefs()
    attach.kprobe(3, "f")
    attach._tidied.clear()
    attach.kprobe(3, "f")
    assert len(held.names()) == 2


def test_an_event_that_was_taken_for_an_orphan_is_made_again(tracefs, monkeypatch):
    held = tracefs()
    real, made = held.append, []

    def append(path, line):
        real(path, line)
        if not line.startswith("-:"):
            made.append(line)
            if len(made) == 1:  # one who began in this moment
                name = held.names()[0]
                real(path, f"-:kprobes/{name}\n")
                (held.root / "events/kprobes" / name / "id").unlink()

    monkeypatch.setattr(attach, "_append", append)
    attach.kprobe(3, "f")
    assert len(made) == 2 and len(held.names()) == 1


def test_an_event_nothing_can_be_attached_to_is_taken_away(tracefs, monkeypatch):
    held = tracefs()

    def refuse(*args):
        raise OSError(errno.EEXIST, "one program an event")

    monkeypatch.setattr(attach, "_attach_event", refuse)
    with pytest.raises(FileExistsError, match="one program"):
        attach.kprobe(3, "f")
    assert held.names() == []
