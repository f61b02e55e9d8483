"""What went wrong, said in one line a person can act on."""


class UserError(Exception):
    """A mistake of input or environment; the command line prints the message and exits 2.

    The message is one line: what is wrong, and what to do about it.
    """


class ModelError(UserError):
    """A model that is missing, unreadable, damaged or not supported."""


class TraceError(UserError):
    """A trace that is missing, unreadable, damaged or does not hold what was asked for."""


class MissingExtra(UserError):
    """An optional package that the asked-for feature needs and that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'tensortrace[{extra}]'")
        self.package = package
        self.extra = extra
