"""How often files are opened and their values read."""

from collections import Counter
from contextlib import contextmanager

from nibabel.arrayproxy import ArrayProxy

from voxelwave.data.reading import nifti


def counted_readings(monkeypatch):
    """Return two counters by the name of a file: how often it is opened, and how often its values are read."""
    opened, read = Counter(), Counter()
    names: dict[int, str] = {}
    open_file, get_unscaled = nifti._opened, ArrayProxy._get_unscaled

    @contextmanager
    def counted_open(path):
        with open_file(path) as (image, stream):
            names[id(stream)] = path.name
            opened[path.name] += 1
            yield image, stream

    def counted_values(proxy, *args, **kwargs):
        read[names[id(proxy.file_like)]] += 1
        return get_unscaled(proxy, *args, **kwargs)

    monkeypatch.setattr(nifti, "_opened", counted_open)
    monkeypatch.setattr(ArrayProxy, "_get_unscaled", counted_values)
    return opened, read
