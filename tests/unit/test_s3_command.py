"""The command line of the S3 server, as far as it needs no server; and its ports."""

import socket

import pytest

from keepstep.testing.ports import PORTS_PER_BLOCK, claim_ports
from keepstep.testing.s3_command import client_environ, parse


def test_command_after_the_border_stays_untouched() -> None:
    options = parse(["--bucket", "b", "--", "torchrun", "--directory", "x", "--", "y"])
    assert (options.directory, options.bucket) == ("runs/s3", "b")
    assert options.command == ["torchrun", "--directory", "x", "--", "y"]


def test_command_without_the_border_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["torchrun"])
    assert "[-- COMMAND ...]" in capsys.readouterr().err


def test_variables_of_another_account_do_not_reach_the_command() -> None:
    theirs = {"AWS_SESSION_TOKEN": "other", "AWS_ACCESS_KEY_ID": "other", "PATH": "/bin"}
    assert client_environ(theirs, {"AWS_ACCESS_KEY_ID": "ours"}) == {
        "AWS_ACCESS_KEY_ID": "ours",
        "PATH": "/bin",
    }


def test_claimed_ports_are_nobody_elses_until_released() -> None:
    ours = claim_ports()
    theirs = claim_ports(preferred=ours.first)
    assert abs(theirs.first - ours.first) >= PORTS_PER_BLOCK
    ours.release()
    theirs.release()
    again = claim_ports(preferred=ours.first)
    assert again.first == ours.first
    again.release()


@pytest.mark.parametrize("offset", [1, 10_001])
def test_block_with_a_port_in_use_is_passed_over(offset: int) -> None:
    block = claim_ports()
    block.release()
    with socket.socket() as used:
        used.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        used.bind(("127.0.0.1", block.first + offset))
        used.listen(1)
        other = claim_ports(preferred=block.first)
    assert other.first != block.first
    other.release()
