"""The one exception of this package whose message is meant for the person at the keyboard."""


class CoPRSError(Exception):
    """A problem that the user can fix. The message is one sentence: what was expected, what came,
    what to do."""


def plain(text: object, most: int = 80) -> str:
    """Foreign text for a message: its first line, letters, digits and a few signs alone, so that it
    is no markup anywhere."""
    line = str(text).partition("\n")[0][:most]
    return "".join(c if (c.isascii() and c.isalnum()) or c in " .,:_-×=()'" else "?" for c in line)
