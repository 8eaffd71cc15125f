"""The failures a person can act on.

Each message is one line that names the offending value and the way out. The command line prints it
without a traceback and leaves with `exit_code`:

    TriviumError   1   something went wrong that the caller can understand
    ├── UsageError 2   the request itself is wrong: a bad value, an unreadable file
    ├── Refused    3   an action was refused, or needed an approval nobody gave
    └── NotFound   4   a model, file or conversation that does not exist

Anything else that is raised is a defect of ours and keeps its traceback.
"""


class TriviumError(Exception):
    exit_code = 1


class UsageError(TriviumError):
    exit_code = 2


class Refused(TriviumError):
    exit_code = 3


class NotFound(TriviumError):
    exit_code = 4
