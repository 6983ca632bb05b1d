import pytest
import torch

from keepstep.train.models import GPT, DigitClassifier, GPTShape, rotate


def make_gpt(*, tied: bool = True, dropout: float = 0.0) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTShape(vocabulary=50, layers=2, width=32, heads=4, tied=tied, dropout=dropout))


def test_logits_cover_the_vocabulary_at_each_position() -> None:
    assert make_gpt()(torch.zeros(3, 7, dtype=torch.long)).shape == (3, 7, 50)


def test_no_position_sees_a_later_token() -> None:
    model = make_gpt()
    tokens = torch.randint(0, 50, (2, 12))
    changed = tokens.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_tied_output_layer_is_the_embedding() -> None:
    tied, untied = make_gpt(tied=True), make_gpt(tied=False)
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == 50 * 32


def test_weights_depend_on_the_seed_alone() -> None:
    first, second = make_gpt(), make_gpt()
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_dropout_acts_in_training_only() -> None:
    model = make_gpt(dropout=0.5)
    tokens = torch.zeros(1, 5, dtype=torch.long)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_rotation_keeps_length_and_depends_on_distance_only() -> None:
    q, k = torch.randn(8), torch.randn(8)
    turned_q = rotate(q.expand(1, 1, 10, 8))[0, 0]
    turned_k = rotate(k.expand(1, 1, 10, 8))[0, 0]
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(10), atol=1e-5)
    products = turned_q @ turned_k.T
    assert products[3, 1].item() == pytest.approx(products[9, 7].item(), abs=1e-4)
    assert products[3, 1].item() != pytest.approx(products[3, 2].item(), abs=1e-4)


def test_rotation_returns_the_precision_it_was_given() -> None:
    assert rotate(torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_digit_logits_cover_ten_classes() -> None:
    assert DigitClassifier(16, 2, 0.0)(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
