"""The one error of this package: a model that cannot be loaded, and why."""


class ModelError(ValueError):
    """A model, a tokenizer or one of their files cannot be used; the message names which and why."""
