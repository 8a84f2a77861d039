"""What a loaded object remembers of its hooks, without a kernel; tests/kernel has the rest."""

import errno

import pytest

from kcompat import load
from kcompat.attach import Attachment
from kcompat.bpf import Object
from kcompat.hook_status import HookState
from kcompat.load import Loaded


def test_failures_without_end_are_remembered_in_part_and_what_is_attached_in_full(monkeypatch):
    def attach(self, name, hook, file):
        if "strange" in hook:
            raise OSError(errno.EINVAL, "Invalid argument")
        return Attachment(hook, lambda: None)

    monkeypatch.setattr(load, "raise_memlock", lambda: None)
    monkeypatch.setattr(Loaded, "_attach", attach)
    loaded = Loaded(Object((), (), "GPL"), 0)
    loaded.attach("uprobe__other", "/proc/1/exe:0x10")
    for pid in range(100):
        for name in ("uprobe__one", "uprobe__other"):
            with pytest.raises(OSError):
                loaded.attach(name, f"/proc/{pid}/map_files/strange:0x10")
        loaded.attach("uprobe__one", f"/proc/{pid}/exe:0x10")

    failed = [hook for hook in loaded.hooks if hook.state is HookState.MISSING]
    assert len(loaded.hooks) - len(failed) == 101
    assert {hook.program for hook in failed} == {"uprobe__one", "uprobe__other"} and len(failed) <= 32
    assert failed[-1].hook == "/proc/99/map_files/strange:0x10"
