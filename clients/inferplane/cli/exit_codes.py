"""What the command's exit status says."""

from enum import IntEnum


class ExitCode(IntEnum):
    """One meaning each; scripts may branch on them."""

    OK = 0, "done"
    UNEXPECTED = 1, "internal or unexpected error"
    USAGE = 2, "wrong options or arguments"
    INVALID_INPUT = 3, "invalid input"
    NOT_AUTHENTICATED = 4, "not authenticated"
    PERMISSION_DENIED = 5, "permission denied"
    NOT_FOUND = 6, "not found"
    CONFLICT = 7, "conflict, or a precondition does not hold"
    UNAVAILABLE = 8, "unavailable, overloaded or out of time"
    DATA_LOSS = 9, "digest mismatch or data loss"
    INTERRUPTED = 130, "interrupted"

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
        """Make a member of its number and its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


def epilog() -> str:
    """List the exit codes for `--help`."""
    return "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode) + "."
