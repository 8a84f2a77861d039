"""Where hooks are put, as far as it is seen without a kernel."""

import ctypes
import os

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
