"""The one exception of this package whose message is meant for the person at the keyboard."""


class CoPRSError(Exception):
    """A problem that the user can fix. The message is one sentence: what was expected, what came,
    what to do."""
