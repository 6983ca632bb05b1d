"""What the launcher asks of the session that this process is about to open."""

_steps_over = False


def order_step_over() -> None:
    """Have the next resume set the newest checkpoint aside, if there is an older one."""
    global _steps_over  # noqa: PLW0603  # one process, one launcher
    _steps_over = True


def take_step_over() -> bool:
    """Whether that was asked for; it counts for one resume."""
    global _steps_over
    is_asked, _steps_over = _steps_over, False
    return is_asked
