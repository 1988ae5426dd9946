import pytest
import torch
from torch import nn

from poa_mm.study.probes import FineTuning, Labelled, balanced, classified, fine_tune, linear_probe, views


def blobs(number, seed):
    """Three classes along three directions, one much weaker than a common nuisance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    x = torch.randn(number, 8, generator=generator)
    x[torch.arange(number), labels] += 3
    x[:, 7] *= 100
    return Labelled(x, labels)


def test_a_linear_probe_learns_what_is_linear_whatever_the_scale():
    scores = [linear_probe(blobs(600, 0), blobs(300, 1), 3, seed=seed, iterations=200) for seed in (0, 0, 1)]
    assert min(scores) > 0.9
    assert scores[0] == scores[1]


def test_a_linear_probe_of_noise_is_at_chance():
    noise = Labelled(torch.randn(600, 8), torch.arange(600) % 3)
    assert linear_probe(noise, Labelled(torch.randn(300, 8), torch.arange(300) % 3), 3, 0, 100) < 0.5


def test_the_test_images_do_not_choose_the_learning_rate(monkeypatch):
    seen = []
    monkeypatch.setattr('poa_mm.study.probes._accuracy', lambda logits, labels: seen.append(len(labels)) or 0.5)
    linear_probe(blobs(600, 0), blobs(300, 1), 3, seed=0, iterations=1)
    assert seen == [60] * 6 + [300]


def test_global_randomness_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    linear_probe(blobs(60, 0), blobs(30, 1), 3, seed=0, iterations=2)
    fine_tune(nn.Flatten(), 3 * 64, images(8), 2, FineTuning(2, 1e-3, batch_size=4), seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('share, expected', [(0.1, [10, 5, 1]), (0.01, [1, 1, 1]), (1, [100, 50, 3])])
def test_every_class_has_its_share_of_the_labels(share, expected):
    labels = torch.tensor([0] * 100 + [2] * 50 + [5] * 3)
    chosen = balanced(labels, share, seed=0)
    assert [(labels[chosen] == value).sum() for value in (0, 2, 5)] == expected
    assert len(set(chosen.tolist())) == len(chosen)
    assert torch.equal(chosen, balanced(labels, share, seed=0))


def images(number):
    """Bright on the left or on the right, 8 x 8."""
    labels = torch.arange(number) % 2
    x = 0.1 * torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[labels == 0, :, :, :3] += 1
    x[labels == 1, :, :, 5:] += 1
    return Labelled(x, labels)


def test_fine_tuning_learns_and_is_repeatable():
    def accuracy(flip):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU())
        how = FineTuning(40, 1e-2, batch_size=16, crop=0.9, flip=flip)
        classifier = fine_tune(network, 8, images(40), 2, how, seed=0)
        assert not classifier.training
        return classified(classifier, images(100), batch_size=7), network[1].weight.detach().clone()

    (first, weight), (second, again) = accuracy(flip=False), accuracy(flip=False)
    assert first == second > 0.95
    assert torch.equal(weight, again)
    assert accuracy(flip=True)[0] < 0.9  # left and right cannot be told from mirror images: flips do happen


def test_views_show_a_part_of_the_image():
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(50, 2, 8, 8)
    whole = views(x, 1.0, False, generator)
    assert torch.allclose(whole, x, atol=1e-4)
    mirrored = views(x, 1.0, True, generator)
    turned = [torch.allclose(view, x[0].flip(-1), atol=1e-4) for view in mirrored]
    assert all(turn or torch.allclose(view, x[0], atol=1e-4) for turn, view in zip(turned, mirrored))
    assert 10 < sum(turned) < 40
    part = views(x, 0.3, False, generator)
    assert part.amin() >= 0
    assert part.amax() <= 63
    assert not torch.allclose(part, x, atol=1)
