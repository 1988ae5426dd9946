import pytest
import torch
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from torch import distributed, multiprocessing
from torch.testing import assert_close

from poa_mm.models import MeanCentering, SinkhornKnopp
from poa_mm.models.losses import centred

CENTERINGS = {'sinkhorn': lambda k: SinkhornKnopp(), 'mean': MeanCentering}


def sinkhorn_by_hand(logits, temperature, iterations):
    """As the papers write it: total one; prototypes to 1 / K each, samples to 1 / N each; samples to one at last."""
    q = torch.exp(logits.double() / temperature)
    samples, prototypes = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] = q[:, k] / q[:, k].sum() / prototypes
        for n in range(samples):
            q[n] = q[n] / q[n].sum() / samples
    return (q * samples).float()


@pytest.mark.parametrize('iterations', [1, 3, 10])
@pytest.mark.parametrize('temperature', [0.04, 0.07, 1.0])
def test_sinkhorn_by_hand(iterations, temperature):
    logits = torch.rand(6, 4) * 2 - 1
    targets = SinkhornKnopp(iterations)(logits, temperature)
    assert_close(targets, sinkhorn_by_hand(logits, temperature, iterations), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('num_prototypes', [7, 64, 96, 128])
def test_sinkhorn_of_any_number_of_prototypes_and_layout(num_prototypes):
    logits = torch.rand(5, num_prototypes)
    expected = sinkhorn_by_hand(logits, 0.5, 3)
    for layout in (logits, logits.T.contiguous().T, torch.cat([logits, logits]).T.contiguous().T[:5]):
        assert_close(SinkhornKnopp()(layout, 0.5), expected, rtol=1e-4, atol=1e-6)


NO_FLOAT16 = digit_version(torch.__version__) < digit_version('2.3')


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=pytest.mark.skipif(NO_FLOAT16, reason='no float16 autocast on the CPU')),
    ],
)
@pytest.mark.parametrize('temperature', [0.04, 0.07])
def test_sinkhorn_is_float32_under_autocast(dtype, temperature):
    """Samples alike leave prototypes with shares that half precision takes for 0."""
    centre = torch.nn.functional.normalize(torch.randn(1, 64), dim=1)
    samples = torch.nn.functional.normalize(centre + 0.01 * torch.randn(32, 64), dim=1)
    logits = samples @ torch.nn.functional.normalize(torch.randn(512, 64), dim=1).T
    expected = SinkhornKnopp()(logits, temperature)
    with torch.autocast('cpu', dtype=dtype):
        targets = SinkhornKnopp()(logits, temperature)
    assert targets.dtype == torch.float32
    assert_close(targets, expected, rtol=0, atol=0)


def test_default_is_three_iterations():
    logits = torch.randn(6, 4)
    assert torch.equal(SinkhornKnopp()(logits, 0.5), SinkhornKnopp(3)(logits, 0.5))


@pytest.mark.parametrize('iterations', [1, 3, 100])
def test_every_sample_sums_to_one(iterations):
    targets = SinkhornKnopp(iterations)(torch.randn(32, 8), 0.2)
    assert_close(targets.sum(dim=1), torch.ones(32), rtol=0, atol=1e-6)
    assert (targets >= 0).all()


def test_prototypes_balance_with_more_iterations():
    """Every prototype's share tends to N / K, whatever its head start."""
    logits = torch.randn(32, 8) + torch.arange(8.0)
    off = [(SinkhornKnopp(n)(logits, 0.5).sum(dim=0) - 4).abs().max().item() for n in (1, 3, 10, 300)]
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.1 and off[-1] < 1e-2


@pytest.mark.parametrize('num_rows, num_prototypes', [(8, 4), (4, 8), (1, 8)])
@pytest.mark.parametrize('scale, temperature', [(1.0, 0.04), (1e4, 0.04), (1e30, 1.0), (1.0, 1e-6)])
def test_sinkhorn_stays_finite(num_rows, num_prototypes, scale, temperature):
    targets = SinkhornKnopp()(scale * torch.randn(num_rows, num_prototypes), temperature)
    assert targets.isfinite().all()
    assert_close(targets.sum(dim=1), torch.ones(num_rows))


def test_a_sample_far_below_the_others_still_has_a_target():
    logits = torch.randn(4, 8)
    logits[0] -= 200
    targets = SinkhornKnopp()(logits, 1.0)
    assert_close(targets.sum(dim=1), torch.ones(4))
    expected = logits.double().exp()  # does not underflow
    for _ in range(3):
        expected /= expected.sum(dim=0)
        expected /= expected.sum(dim=1, keepdim=True)
    assert_close(targets, expected.float())


def test_common_shift_of_all_logits_does_not_matter():
    logits = torch.randn(8, 4)
    assert_close(SinkhornKnopp()(logits + 1000, 0.5), SinkhornKnopp()(logits, 0.5), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('make', CENTERINGS.values(), ids=CENTERINGS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_gives_float32(make, dtype):
    logits = torch.randn(8, 4).to(dtype)
    targets = make(4)(logits, 0.07)
    assert targets.dtype == torch.float32
    assert_close(targets, make(4)(logits.float(), 0.07))


@pytest.mark.parametrize('make', CENTERINGS.values(), ids=CENTERINGS)
def test_no_rows(make):
    centering = make(4)
    targets = centering(torch.randn(0, 4), 0.07)
    assert targets.shape == (0, 4) and targets.dtype == torch.float32
    assert all(buffer.isfinite().all() for buffer in centering.buffers())


@pytest.mark.parametrize('make', CENTERINGS.values(), ids=CENTERINGS)
def test_input_is_left_alone_and_no_gradient_flows(make):
    logits = torch.randn(8, 4, requires_grad=True)
    before = logits.detach().clone()
    assert not make(4)(logits, 0.07).requires_grad
    assert torch.equal(logits, before)


@pytest.mark.parametrize('iterations', [0, -1])
def test_too_few_iterations_are_refused(iterations):
    with pytest.raises(ValueError, match=f'iterations {iterations} is below 1'):
        SinkhornKnopp(iterations)


def test_mean_centering_by_hand():
    """The centre in force is that of the steps before; it follows the mean logits of each batch."""
    centering = MeanCentering(4, momentum=0.75)
    centre = torch.zeros(4)
    for _ in range(3):
        logits = torch.randn(8, 4) + 2
        expected = torch.softmax((logits - centre) / 0.5, dim=1)
        assert_close(centering(logits, 0.5), expected)
        centre = 0.75 * centre + 0.25 * logits.mean(dim=0)
        assert_close(centering.centre, centre.unsqueeze(0))


def test_mean_centering_without_rows_keeps_the_centre():
    centering = MeanCentering(4)
    centering(torch.ones(2, 4), 0.5)
    centre = centering.centre.clone()
    centering(torch.ones(0, 4), 0.5)
    assert torch.equal(centering.centre, centre)


def test_the_centre_is_part_of_the_checkpoint():
    centering = MeanCentering(4)
    centering(torch.randn(8, 4), 0.5)
    other = MeanCentering(4)
    other.load_state_dict(centering.state_dict())
    assert torch.equal(other.centre, centering.centre)
    assert not SinkhornKnopp().state_dict()


@pytest.mark.parametrize('kind', ['SinkhornKnopp', 'MeanCentering'])
def test_both_are_built_alike(kind):
    centering = MODELS.build(dict(type=kind, num_prototypes=4))
    assert centering(torch.randn(3, 4), 0.07).shape == (3, 4)


# --- from embeddings ---


def unit(rows, channels=8):
    return torch.nn.functional.normalize(torch.randn(rows, channels), dim=1)


@pytest.mark.parametrize('chunk', [2**26, 64, 1], ids=['one chunk', 'some rows', 'row by row'])
@pytest.mark.parametrize('temperature', [0.04, 0.07, 1.0])
@pytest.mark.parametrize('iterations', [1, 3])
def test_factors_stand_for_the_targets(monkeypatch, chunk, temperature, iterations):
    monkeypatch.setattr('poa_mm.models.losses.centering.CHUNK', chunk)
    embeddings, prototypes = unit(13), unit(32)
    shift = SinkhornKnopp(iterations).shift(embeddings, prototypes, temperature)
    expected = SinkhornKnopp(iterations)(embeddings @ prototypes.T, temperature)
    assert shift.shape == (32,)
    assert_close(centred(embeddings, prototypes, shift, temperature), expected, rtol=1e-4, atol=1e-6)
    assert_close(centred(embeddings[3:5], prototypes, shift, temperature), expected[3:5], rtol=1e-4, atol=1e-6)


def test_the_centre_moves_as_with_logits():
    with_logits, with_embeddings = MeanCentering(32, momentum=0.5), MeanCentering(32, momentum=0.5)
    for _ in range(3):
        embeddings, prototypes = unit(13), unit(32)
        shift = with_embeddings.shift(embeddings, prototypes, 0.1)
        expected = with_logits(embeddings @ prototypes.T, 0.1)
        assert_close(centred(embeddings, prototypes, shift, 0.1), expected)
        assert_close(with_embeddings.centre, with_logits.centre)


@pytest.mark.parametrize('chunk', [2**26, 64])
def test_stale_embeddings_take_their_shares(monkeypatch, chunk):
    """The targets are those of one large batch; places that are not taken do not count."""
    monkeypatch.setattr('poa_mm.models.losses.centering.CHUNK', chunk)
    embeddings, prototypes = unit(24), unit(16)
    stale = torch.cat([embeddings[5:], torch.zeros(9, 8)])
    shift = SinkhornKnopp().shift(embeddings[:5], prototypes, 0.1, stale)
    expected = SinkhornKnopp()(embeddings @ prototypes.T, 0.1)
    assert_close(centred(embeddings, prototypes, shift, 0.1), expected, rtol=1e-4, atol=1e-6)
    alone = SinkhornKnopp().shift(embeddings[:5], prototypes, 0.1)
    assert_close(SinkhornKnopp().shift(embeddings[:5], prototypes, 0.1, torch.zeros(9, 8)), alone)
    assert (shift - alone).abs().max() > 0.1


@pytest.mark.parametrize('make', CENTERINGS.values(), ids=CENTERINGS)
def test_shift_without_rows(make):
    shift = make(4).shift(torch.randn(0, 8), unit(4), 0.07)
    assert shift.shape == (4,) and shift.isfinite().all()


def test_shift_is_float32_under_autocast():
    embeddings, prototypes = unit(13), unit(32)
    expected = SinkhornKnopp().shift(embeddings, prototypes, 0.04)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = SinkhornKnopp().shift(embeddings, prototypes, 0.04)
        targets = centred(embeddings, prototypes, found, 0.04)
    assert_close(found, expected, rtol=0, atol=0)
    assert_close(targets, centred(embeddings, prototypes, expected, 0.04), rtol=0, atol=0)


# --- over two processes ---

SPLITS = {'even': 4, 'uneven': 5, 'all on one rank': 8}


def center_shard(rank, folder, logits):
    """What rank ``rank`` of two computes of its rows, for every centring and every split of the batch."""
    init = f'file://{folder}/rendezvous'
    distributed.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
    results = {}
    for name, make in CENTERINGS.items():
        for split, first in SPLITS.items():
            centering = make(logits.shape[1])
            shard = logits[:first] if rank == 0 else logits[first:]
            targets = [centering(shard, 0.2) for _ in range(2)]
            results[name, split] = targets, dict(centering.named_buffers())
        results[name, 'nobody has rows'] = make(logits.shape[1])(logits[:0], 0.2).shape
    torch.save(results, f'{folder}/rank{rank}.pt')
    distributed.barrier()  # and no destroy_process_group: with gloo of torch 2.1 it may wait for ever


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Eight rows of logits, and the results of both ranks."""
    folder = tmp_path_factory.mktemp('two_ranks')
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    multiprocessing.spawn(center_shard, (str(folder), logits), nprocs=2)
    return logits, [torch.load(folder / f'rank{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', CENTERINGS)
def test_sharded_batch_gives_what_the_whole_batch_gives(shards, name, split):
    logits, (first, second) = shards
    centering = CENTERINGS[name](4)
    expected = [centering(logits, 0.2) for _ in range(2)]
    for step in range(2):
        assert_close(torch.cat([first[name, split][0][step], second[name, split][0][step]]), expected[step])
    for shard in (first, second):
        assert_close(shard[name, split][1], dict(centering.named_buffers()))


@pytest.mark.parametrize('name', CENTERINGS)
def test_sharded_batch_without_rows(shards, name):
    assert [shard[name, 'nobody has rows'] for shard in shards[1]] == [(0, 4), (0, 4)]
