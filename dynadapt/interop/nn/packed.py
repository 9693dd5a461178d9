"""A linear layer whose frozen weight stays packed for the kernels, whatever gives it another tensor."""

from __future__ import annotations


class KeepsPacked:
    """Calls the module's ``_freeze`` after to() and its like, deepcopy and unpickling, load_state_dict(assign=True). Stands before
    ``torch.nn.Linear`` among the bases."""

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self._freeze()
        return self

    def __setstate__(self, state):
        super().__setstate__(state)
        self._freeze()

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._freeze()
