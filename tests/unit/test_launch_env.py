import pytest

from keepstep.errors import ConfigError, ExitCode, exit_code_of
from keepstep.launch.env import is_launched, world_from
from keepstep.world import World

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RESTART_COUNT": "5",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_process_without_launcher_is_alone() -> None:
    assert world_from({"PATH": "/bin"}) == World()
    assert not is_launched({})


def test_world_is_what_torchrun_says() -> None:
    assert is_launched(TORCHRUN)
    assert world_from(TORCHRUN) == World(
        rank=3,
        world_size=4,
        local_rank=1,
        local_world_size=2,
        node=1,
        num_nodes=2,
        restart_count=5,
    )


@pytest.mark.parametrize(
    "name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
)
def test_missing_variable_is_named(name: str) -> None:
    environ = {key: value for key, value in TORCHRUN.items() if key != name}
    with pytest.raises(ConfigError, match=rf"but not {name}: start ranks with torchrun") as caught:
        world_from(environ)
    assert exit_code_of(caught.value) is ExitCode.CONFIG


@pytest.mark.parametrize("value", ["", "-1", "two", "1.5"])
def test_variable_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE = "):
        world_from(TORCHRUN | {"WORLD_SIZE": value})


def test_rank_outside_of_the_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="RANK = 4 but WORLD_SIZE = 4"):
        world_from(TORCHRUN | {"RANK": "4"})
