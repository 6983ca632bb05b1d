import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from keepstep.config import Config, DataConfig, ModelConfig
from keepstep.errors import ConfigError
from keepstep.train.tasks import Task, TextTask, open_task


def text_config(directory: Path, *, context: int = 16) -> Config:
    data = DataConfig(path=str(directory), context=context)
    return Config(data=data, model=ModelConfig(layers=1, width=16, heads=2))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(params=["text", "digits"])
def task(request: pytest.FixtureRequest, directory: Path) -> Task:
    if request.param == "digits":
        pytest.importorskip("sklearn")
    return open_task(text_config(directory).model_copy(update={"task": request.param}))


def test_loss_of_a_new_model_is_that_of_guessing(task: Task) -> None:
    torch.manual_seed(0)
    model = task.make_model()
    loss = task.loss(model, task.train_batch(np.arange(64))).item()
    classes = 256 if isinstance(task, TextTask) else 10
    assert loss == pytest.approx(np.log(classes), rel=0.1)


def test_all_samples_can_be_read(task: Task) -> None:
    last = np.array([0, task.num_samples - 1])
    assert len(task.train_batch(last)[0]) == 2
    last = np.array([0, task.num_validation_samples - 1])
    assert len(task.validation_batch(last)[0]) == 2


def test_training_and_validation_are_different_samples(task: Task) -> None:
    ids = np.arange(min(task.num_samples, task.num_validation_samples))
    assert not torch.equal(task.train_batch(ids)[0], task.validation_batch(ids)[0])


def test_blocks_are_parts_of_the_model(task: Task) -> None:
    model = task.make_model()
    blocks = task.blocks(model)
    assert blocks
    assert all(block in set(model.modules()) for block in blocks)


def test_data_digest_names_the_content(task: Task, directory: Path) -> None:
    name = "text" if isinstance(task, TextTask) else "digits"
    again = open_task(text_config(directory).model_copy(update={"task": name}))
    assert task.data_digest == again.data_digest
    assert task.data_digest.startswith("sha256:")


def test_target_of_a_position_is_the_next_token(directory: Path) -> None:
    inputs, targets = open_task(text_config(directory)).train_batch(np.array([5, 9]))
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_context_longer_than_the_data_is_refused(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.context = 100000000 is longer"):
        open_task(text_config(directory, context=100_000_000))


def test_missing_scikit_learn_is_explained(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'keepstep\[digits\]'"):
        open_task(text_config(directory).model_copy(update={"task": "digits"}))
