"""The one exception family that the command line turns into a single line and exit code 2."""

import textwrap


class GctError(Exception):
    """A problem the user can act on; its message names the file or value and what to do."""


class UnfinishedError(GctError):
    """A training run stopped before its last step; it is saved and can be resumed."""


class ConfigError(GctError, ValueError):
    """A configuration field or an option that is unknown, missing or outside its range."""


class InputError(GctError, ValueError):
    """A prompt, volume or array that cannot be used."""


class ModelFolderError(GctError):
    """A model folder or weight file that is missing, damaged or of another structure."""


def in_a_line(error: BaseException, most: int = 160) -> str:
    """The words of an error of a library on one line, cut between words."""
    return textwrap.shorten(str(error), most, placeholder=" ...") or type(error).__name__
