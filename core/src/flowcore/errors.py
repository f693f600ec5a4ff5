"""The errors a user meets: one line that names the thing and the way out, and the exit code it ends the command with.

Plugins raise these too. Anything else that escapes is a fault of ours or of the plugin, and ends with exit code 1.
"""


class FlowError(Exception):
    """The run failed. Exit code 1; the other codes are the subclasses below."""

    exit_code = 1
    echo = False  # whether another process of the run tells the same


class UsageError(FlowError):
    """What the user asked for cannot be done as asked: an unknown name, a bad value. Exit code 2."""

    exit_code = 2


class InputError(UsageError):
    """A file or folder handed in is missing, empty or unreadable; the message names it. Exit code 2."""


class PluginError(FlowError):
    """A plugin is unknown, broken, incompatible or duplicate. Exit code 3."""

    exit_code = 3


class MachineError(FlowError):
    """The machine refuses: disk, device, network, lock. Exit code 4."""

    exit_code = 4


class MissingPackageError(MachineError):
    """A package that something optional needs is not installed; the message says what brings it. Exit code 4.

    ``platform check`` leaves what raises it untried, and says so.
    """


class IntegrityError(FlowError):
    """A hash does not match, a checkpoint is damaged, a file is not safe to read. Exit code 5."""

    exit_code = 5
