"""How often files are opened and their values read."""

from collections import Counter
from pathlib import Path

import nibabel
from nibabel.arrayproxy import ArrayProxy


def counted_readings(monkeypatch):
    """Return two counters by the name of a file: how often nibabel opens it, and how often it reads its values."""
    opened, read = Counter(), Counter()
    load, get_unscaled = nibabel.load, ArrayProxy._get_unscaled

    def counted_load(path, *args, **kwargs):
        opened[Path(path).name] += 1
        return load(path, *args, **kwargs)

    def counted_values(proxy, *args, **kwargs):
        read[Path(proxy.file_like).name] += 1
        return get_unscaled(proxy, *args, **kwargs)

    monkeypatch.setattr(nibabel, "load", counted_load)
    monkeypatch.setattr(ArrayProxy, "_get_unscaled", counted_values)
    return opened, read
