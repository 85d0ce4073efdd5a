"""How many bytes of tensors are alive at once, counted operation by operation."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the storages made inside it; `peak` is the most bytes that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if is_tensor(x)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if is_tensor(x):
                self._count(x.untyped_storage(), given)
        return out

    def _count(self, storage, given):
        key = storage.data_ptr()
        if key in given or key in self.seen or storage.nbytes() == 0:
            return
        self.seen[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key):
        self.alive -= self.seen.pop(key, 0)


def is_tensor(x):
    return isinstance(x, torch.Tensor)
