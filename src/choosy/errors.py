"""The error of a run that can be resumed once its cause is mended."""


class Stopped(ValueError):
    """A run stops with everything bought so far kept; its message ends with what to do, such as to resume the run.

    The commands print the line that resumes it below the message.
    """
