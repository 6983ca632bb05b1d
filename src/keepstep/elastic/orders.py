"""What the launcher asks of, and tells, the session that this process opens; and hears of it."""

_steps_over = False
_cause: str | None = None
_exit_code = 0


def order_step_over() -> None:
    """Have the next resume set the newest checkpoint aside, if there is an older one."""
    global _steps_over  # noqa: PLW0603  # one process, one launcher
    _steps_over = True


def take_step_over() -> bool:
    """Whether that was asked for; it counts for one resume."""
    global _steps_over
    is_asked, _steps_over = _steps_over, False
    return is_asked


def tell_cause(cause: str) -> None:
    """Why this process was started again."""
    global _cause  # noqa: PLW0603  # one process, one start
    _cause = cause


def cause_of_start() -> str | None:
    """Why this process was started again; ``None`` for a first start, or if nobody told."""
    return _cause


def tell_exit_code(code: int) -> None:
    """With what this process is to end if its script says nothing else: it was told to go."""
    global _exit_code  # noqa: PLW0603  # one process, one end
    _exit_code = code


def told_exit_code() -> int:
    """What a session has told last; else 0."""
    return _exit_code
