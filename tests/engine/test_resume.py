import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch.testing import assert_close

from poa_mm import main_process
from poa_mm.checkpoint import CheckpointError, read_checkpoint
from poa_mm.engine import resume
from poa_mm.engine.hooks.model import model_of
from poa_mm.engine.resume import check_resumable, check_start, find_resumable, load_from_poa, set_start


class Command:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(resume, '_warn', said.append)
    return said


# --- the newest good checkpoint --------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A work dir with iter_1.pth to iter_3.pth."""
    for number in (1, 2, 3):
        save(tmp_path, number)
    return tmp_path


def save(folder, number, point=True):
    torch.save({'state_dict': {'a': torch.full((100,), float(number))}}, folder / 'unsealed')
    path = folder / f'iter_{number}.pth'
    get_file_backend(folder, backend_args=dict(backend='atomic')).put((folder / 'unsealed').read_bytes(), path)
    (folder / 'unsealed').unlink()
    if point:
        (folder / 'last_checkpoint').write_text(str(path))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest(folder, warnings):
    assert find_resumable(folder) == folder / 'iter_3.pth'
    assert not warnings


def test_by_number_not_by_name(folder):
    save(folder, 10)
    assert find_resumable(folder).name == 'iter_10.pth'


DAMAGES = dict(
    truncated=lambda path: path.write_bytes(path.read_bytes()[:1000]),
    flipped=flip,
    emptied=lambda path: path.write_bytes(b''),
    command=lambda path: torch.save({'state_dict': Command(path.with_name('marker'))}, path),
    not_ours=lambda path: path.write_bytes(b'<!doctype html>'),
)


@pytest.mark.parametrize('damage', DAMAGES)
def test_falls_back_and_says_so(folder, warnings, damage):
    DAMAGES[damage](folder / 'iter_3.pth')
    assert find_resumable(folder) == folder / 'iter_2.pth'
    assert len(warnings) == 1 and str(folder / 'iter_3.pth') in warnings[0]
    flip(folder / 'iter_2.pth')
    assert find_resumable(folder) == folder / 'iter_1.pth'
    DAMAGES[damage](folder / 'iter_1.pth')
    with pytest.raises(CheckpointError, match=r'none of its checkpoints.*iter_3\.pth, iter_2\.pth, iter_1\.pth'):
        find_resumable(folder)
    assert not (folder / 'marker').exists()


@pytest.mark.parametrize(
    ('text', 'warning'),
    [
        ('', 'is blank'),
        (' \n', 'is blank'),
        ('\0\0\0', 'is blank'),
        ('work/iter_9.pth', 'names work/iter_9.pth, which'),
    ],
)
def test_pointer_of_no_use(folder, warnings, text, warning):
    (folder / 'last_checkpoint').write_text(text)
    assert find_resumable(folder) == folder / 'iter_3.pth'
    assert len(warnings) == 1 and warning in warnings[0] and 'last_checkpoint' in warnings[0]


def test_no_pointer(folder, warnings):
    (folder / 'last_checkpoint').unlink()
    assert find_resumable(folder) == folder / 'iter_3.pth'
    assert not warnings


def test_killed_before_the_pointer_was_written(folder, warnings):
    save(folder, 4, point=False)
    assert find_resumable(folder) == folder / 'iter_4.pth'
    assert not warnings


def test_a_longer_run_before_in_the_same_folder(folder, warnings):
    save(folder, 9)
    os.utime(folder / 'iter_9.pth', (0, 0))
    save(folder, 2)
    assert find_resumable(folder) == folder / 'iter_2.pth'
    flip(folder / 'iter_2.pth')
    assert find_resumable(folder) == folder / 'iter_1.pth'


def test_a_folder_that_was_moved(folder, warnings):
    moved = folder.rename(folder.with_name('moved'))
    assert find_resumable(moved) == moved / 'iter_3.pth'
    assert not warnings


def copied(folder):
    """A copy of a work dir, whose pointer is that of the original."""
    return Path(shutil.copytree(folder, folder.with_name(f'copy of {folder.name}')))


def test_a_copy_goes_on_from_its_own(folder, warnings):
    copy = copied(folder)
    save(folder, 4)  # the original runs on
    assert find_resumable(copy) == copy / 'iter_3.pth'
    assert not warnings
    flip(copy / 'iter_3.pth')
    assert find_resumable(copy) == copy / 'iter_2.pth'


@pytest.mark.parametrize('text', ['work/iter_3.pth', './iter_3.pth', '/no/such/folder/iter_3.pth', 'iter_3.pth\n'])
def test_beside_the_pointer_first_whatever_it_says(folder, warnings, monkeypatch, text):
    (folder / 'last_checkpoint').write_text(text)
    monkeypatch.chdir(folder.parent)
    os.makedirs('work', exist_ok=True)
    save(Path('work'), 3)  # where the text points to from here
    assert find_resumable(folder) == folder / 'iter_3.pth'
    assert not warnings


def test_elsewhere_only_if_it_is_missing_beside_and_with_a_warning(folder, warnings):
    copy = copied(folder)
    (copy / 'iter_3.pth').unlink()
    assert find_resumable(copy) == folder / 'iter_3.pth'
    (warning,) = warnings
    assert str(copy / 'last_checkpoint') in warning and str(folder / 'iter_3.pth') in warning
    (folder / 'iter_3.pth').unlink()
    assert find_resumable(copy) == copy / 'iter_2.pth'
    assert 'is not there' in warnings[-1]


def test_other_names(folder):
    (folder / 'iter_2.pth').rename(folder / 'mine.pth')
    (folder / 'last_checkpoint').write_text('mine.pth')
    assert find_resumable(folder).name == 'mine.pth'
    flip(folder / 'mine.pth')
    assert find_resumable(folder).name == 'iter_3.pth'


def test_nothing_there(tmp_path, warnings):
    assert find_resumable(tmp_path) is None
    assert find_resumable(tmp_path / 'gone') is None
    save(tmp_path, 1)
    (tmp_path / 'iter_1.pth').rename(tmp_path / 'best_acc_iter_1.pth')  # has no optimizer
    assert find_resumable(tmp_path) is None
    (tmp_path / 'last_checkpoint').unlink()
    assert find_resumable(tmp_path) is None


# --- what a run starts from ------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['auto', None])
def test_resumes_from_the_newest(folder, kind):
    cfg = Config(dict(work_dir=str(folder), resume=kind is None, load_from=None))
    assert set_start(cfg, kind) == folder / 'iter_3.pth'
    assert cfg.resume is True
    assert cfg.load_from == f'poa://{folder}/iter_3.pth'


def test_resumes_from_nothing(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    set_start(cfg, 'auto')
    assert cfg.resume is False
    assert cfg.load_from is None


def test_resumes_from_the_start_of_the_config(folder, tmp_path):
    """A run that is started again and again with --resume loads its first weights the first time."""
    cfg = Config(dict(work_dir=str(tmp_path / 'new'), load_from=str(folder / 'iter_1.pth')))
    set_start(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, f'poa://{folder}/iter_1.pth')
    cfg = Config(dict(work_dir=str(folder), load_from=str(folder / 'iter_1.pth')))
    set_start(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, f'poa://{folder}/iter_3.pth')


def test_resumes_from_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cfg = Config(dict(work_dir='other', load_from='gone.pth'))
    for name in ('iter_1.pth', 'poa://iter_1.pth'):
        assert set_start(cfg, name) == Path('iter_1.pth')
        assert (cfg.resume, cfg.load_from) == (True, 'poa://iter_1.pth')


@pytest.mark.parametrize('uri', ['https://host/a.pth', 's3://bucket/a.pth', 'torchvision://resnet50'])
def test_uris_are_left_alone(uri):
    cfg = Config(dict(load_from=uri))
    assert set_start(cfg) is None
    assert cfg.load_from == uri


def test_nothing_to_do():
    cfg = Config(dict(a=1))
    set_start(cfg)
    assert cfg.to_dict() == dict(a=1)


@pytest.mark.parametrize('kind', ['resume', 'load_from', 'config'])
def test_a_command_is_not_run(tmp_path, kind):
    torch.save({'state_dict': Command(tmp_path / 'marker')}, tmp_path / 'a.pth')
    path = str(tmp_path / 'a.pth')
    cfg = Config(dict(work_dir=str(tmp_path), load_from=None if kind == 'resume' else path, resume=kind == 'config'))
    with pytest.raises(CheckpointError, match=r'posix\.system, which is neither a tensor nor plain data'):
        set_start(cfg, path if kind == 'resume' else None)
    with pytest.raises(CheckpointError, match=r'posix\.system'):
        CheckpointLoader.load_checkpoint(f'poa://{path}')
    assert not (tmp_path / 'marker').exists()


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r'gone\.pth: expected a checkpoint file, found nothing'):
        set_start(Config(dict(load_from=str(tmp_path / 'gone.pth'))))


class Ranks:
    """Stands in for the process group: what rank 0 says reaches this process."""

    def __init__(self, monkeypatch, rank, said=None):
        self.rank, self.said = rank, said
        monkeypatch.setattr(main_process, 'is_main_process', lambda: rank == 0)
        monkeypatch.setattr(main_process, 'broadcast_object_list', self.broadcast)

    def broadcast(self, answer):
        if self.rank == 0:
            self.said = list(answer)
        answer[:] = self.said


def test_rank_0_decides(folder, monkeypatch):
    said = Ranks(monkeypatch, 0)
    path = set_start(Config(dict(work_dir=str(folder))), 'auto')
    assert path == said.said[0] == folder / 'iter_3.pth'
    Ranks(monkeypatch, 1, said=[folder / 'iter_2.pth', None])
    assert set_start(Config(dict(work_dir='unseen')), 'auto') == folder / 'iter_2.pth'


def test_all_ranks_stop(folder, monkeypatch):
    for path in folder.glob('*.pth'):
        flip(path)
    said = Ranks(monkeypatch, 0)
    with pytest.raises(CheckpointError, match='none of its checkpoints'):
        set_start(Config(dict(work_dir=str(folder))), 'auto')
    Ranks(monkeypatch, 1, said.said)
    with pytest.raises(CheckpointError, match='none of its checkpoints'):
        set_start(Config(dict(work_dir='unseen')), 'auto')


def test_safetensors_start_a_run(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    cfg = Config(dict(load_from=str(tmp_path / 'a.safetensors')))
    set_start(cfg)
    assert torch.equal(CheckpointLoader.load_checkpoint(cfg.load_from)['state_dict']['a'], torch.ones(2))


# --- as good as mmengine's own ---------------------------------------------------------------


@pytest.fixture
def run_config(run_config):
    run_config.default_hooks.checkpoint.update(type='POACheckpointHook', interval=1, max_keep_ckpts=2)
    run_config.param_scheduler = [dict(type='PolyLR', by_epoch=False, end=6)]
    return run_config


@pytest.fixture
def trained(run_config, build_runner):
    """A checkpoint of four iterations; the config goes on to six."""
    build_runner(run_config).train()
    run_config.train_cfg.max_iters = 6
    return Path(run_config.work_dir, 'iter_4.pth')


@pytest.mark.parametrize('kind', ['POACheckpointHook', 'CheckpointHook'])
def test_a_resumed_run_equals_one_that_mmengine_resumes(run_config, build_runner, kind):
    run_config.default_hooks.checkpoint.type = kind
    build_runner(run_config).train()
    run_config.train_cfg.max_iters = 6
    run_config.update(resume=True, load_from=str(Path(run_config.work_dir, 'iter_4.pth')))
    runners = []
    for read_by in ('mmengine', 'poa_mm'):
        cfg = Config(run_config.to_dict() | dict(work_dir=f'{run_config.work_dir}_{read_by}'))
        if read_by == 'poa_mm':
            set_start(cfg)
        runners.append(build_runner(cfg))
        runners[-1].train()
    one, other = runners
    assert one.iter == other.iter == 6
    assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)
    one, other = (read_checkpoint(Path(runner.work_dir, 'iter_6.pth')) for runner in runners)
    assert one['param_schedulers'] == other['param_schedulers']
    assert one['optimizer'].keys() == other['optimizer'].keys()
    assert_close(one['optimizer']['state'], other['optimizer']['state'], rtol=0, atol=0)
    for name, history in one['message_hub']['log_scalars'].items():
        again = other['message_hub']['log_scalars'][name]
        assert len(history.values) == len(again.values) == 6
        if not name.endswith('time'):
            assert (history.values == again.values).all(), name
    assert one['message_hub']['resumed_keys'] == other['message_hub']['resumed_keys']
    assert one['message_hub']['runtime_info'].keys() == other['message_hub']['runtime_info'].keys()


def hub_file(path, **info):
    hub = MessageHub(name='test')
    hub.update_scalars({'train/loss': 0.5, 'train/lr': dict(value=np.float64(0.1), count=2)})
    hub.update_scalars({'train/loss': 0.25})
    for name, value in info.items():
        hub.update_info(name, value)
    torch.save({'message_hub': hub.state_dict()}, path)
    return load_from_poa(f'poa://{path}')['message_hub']


def test_logs_are_read_as_numbers(tmp_path):
    hub = hub_file(
        tmp_path / 'a.pth', best_score=np.float32(0.25), steps=np.int64(3), flag=np.bool_(True), x=np.ones(3)
    )
    loss = hub['log_scalars']['train/loss']
    assert type(loss) is HistoryBuffer
    assert loss.data[0].tolist() == [0.5, 0.25]
    loss.update(1.0)
    assert loss.mean(2) == 0.625
    assert hub['log_scalars']['train/lr'].data[1].tolist() == [2]
    info = hub['runtime_info']
    assert (info['best_score'], info['steps'], info['flag']) == (0.25, 3, True)
    assert type(info['best_score']) is float
    assert 'x' not in info and 'x' not in hub['resumed_keys']
    MessageHub(name='other').load_state_dict(hub)


def test_files_elsewhere_are_not_named(tmp_path):
    """mmengine's CheckpointHook would delete them when it has a better or newer one."""
    hub = hub_file(
        tmp_path / 'a.pth',
        keep_ckpt_ids=[1, '/../../precious', True, 3],
        best_ckpt='/etc/precious.pth',
        best_ckpt_a=str(tmp_path / 'best.pth'),
        best_ckpt_b=str(tmp_path / '..' / 'precious.pth'),
        best_ckpt_c=3,
    )
    info = hub['runtime_info']
    assert info['keep_ckpt_ids'] == [1, 3]
    assert [name for name in info if name.startswith('best')] == ['best_ckpt_a']


def test_python_in_the_config_is_not_executed(trained, run_config, build_runner, tmp_path):
    content = torch.load(trained, weights_only=False)
    code = f'import os\nos.system("touch {tmp_path}/marker")\n'
    content['meta'].update(config=code, cfg=code)
    torch.save(content, trained)
    set_start(run_config, 'auto')
    assert run_config.load_from.endswith('iter_4.pth')
    runner = build_runner(run_config)
    runner.train()
    assert runner.iter == 6
    assert not (tmp_path / 'marker').exists()


# --- wrong files -----------------------------------------------------------------------------


def refused(run_config, build_runner, content, match):
    with pytest.raises(CheckpointError, match=rf'^file: {match}'):
        check_resumable(content, model_of(build_runner(run_config)), 'file')


def test_the_right_file(trained, run_config, build_runner):
    for weights in (True, False):
        check_resumable(read_checkpoint(trained, weights), model_of(build_runner(run_config)), trained)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (dict(arch=dict(feedforward_channels=96)), 'the given config is not.*feedforward_channels.*96.*in the .*64'),
        (
            dict(arch=dict(num_layers=4), depths=[2, 4]),
            r'the given config is not.*space is widths.*depths 2, 4, in the',
        ),
        (dict(arch=dict(num_heads=8)), r'the given config is not that of the checkpoint: arch is .*num_heads'),
        (dict(widths=[16, 32]), r'.*its space is widths 16, 32; .*, in the checkpoint widths 16, 24, 32'),
        (dict(depths=[3]), r'.*its space is .*depths 3, in the checkpoint .*depths 2, 3'),
    ],
)
def test_another_network(trained, run_config, build_runner, change, match):
    run_config.merge_from_dict(dict(model=dict(backbone=change)))
    refused(run_config, build_runner, read_checkpoint(trained), match)


def test_another_normalisation(trained, run_config, build_runner):
    run_config.model.data_preprocessor.mean = [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match=r'normalised otherwise: .*mean is \[1.0, 2.0, 3.0\], in the checkpoint'):
        resume.check_resumable(read_checkpoint(trained), build_runner(run_config).model, 'a.pth')


def test_numbers_of_the_recipe_that_have_no_effect_are_named(warnings):
    checkpoint = {'poa': {'recipe': dict(lr=0.003, betas=(0.9, 0.98), max_iters=4)}}
    resume.warn_of_other_settings(checkpoint, Config(dict(recipe=dict(lr=0.003, betas=[0.9, 0.98], max_iters=4))))
    assert not warnings
    resume.warn_of_other_settings(checkpoint, Config(dict(recipe=dict(lr=0.3, betas=[0.9, 0.98], max_iters=8))))
    (text,) = warnings
    assert 'recipe.lr is 0.3 and was 0.003; recipe.max_iters is 8 and was 4' in text
    resume.warn_of_other_settings({}, Config(dict(a=1)))
    assert len(warnings) == 1


def test_a_seed_that_has_no_effect_is_named(warnings):
    checkpoint = dict(meta=dict(seed=0))
    for randomness in (dict(seed=0), dict(seed=None), {}):
        resume.warn_of_other_settings(checkpoint, Config(dict(randomness=randomness)))
    resume.warn_of_other_settings({}, Config(dict(randomness=dict(seed=1))))
    assert not warnings
    resume.warn_of_other_settings(checkpoint, Config(dict(randomness=dict(seed=1))))
    (text,) = warnings
    assert 'randomness.seed is 1 and was 0: a resumed run keeps the seed that it began with' in text


def test_another_family(trained, run_config, build_runner, supernets):
    content = read_checkpoint(trained)
    content['poa']['backbone'] = supernets['swin']
    refused(run_config, build_runner, content, '.*ElasticVisionTransformer, in the checkpoint ElasticSwinTransformer')


def test_renamed_keys(trained, run_config, build_runner):
    content = read_checkpoint(trained)
    content['state_dict'] = {f'student.{key}': value for key, value in content['state_dict'].items()}
    refused(run_config, build_runner, content, r'state_dict does not fit.*missing backbone\..*unexpected student\.')


def test_another_head(trained, run_config, build_runner):
    run_config.model.head.num_prototypes = [8, 24]
    refused(run_config, build_runner, read_checkpoint(trained), r'state_dict does not fit.*expected \(24, ')


@pytest.mark.parametrize('part', ['meta', 'state_dict', 'optimizer', 'message_hub'])
def test_incomplete(trained, run_config, build_runner, part):
    content = read_checkpoint(trained)
    del content[part]
    refused(run_config, build_runner, content, f'is not a checkpoint to resume: it lacks {part}; `load_from`')


@pytest.mark.parametrize('value', [None, -1, '3', True])
def test_no_iteration(trained, run_config, build_runner, value):
    content = read_checkpoint(trained)
    content['meta']['iter'] = value
    refused(run_config, build_runner, content, 'expected meta.iter to be a whole number, found')


def test_no_hub(trained, run_config, build_runner):
    content = read_checkpoint(trained)
    content['message_hub'] = dict(log_scalars=3)
    refused(run_config, build_runner, content, 'expected the state of a message hub, found log_scalars')


# --- weights that a new run starts from --------------------------------------------------------
def test_a_file_that_init_cfg_loads_is_not_loaded_again(tmp_path):
    """``load_from`` of an extracted config is for mmpretrain's get_model; it would undo what was resized."""
    torch.save({'state_dict': {'a': torch.ones(1)}}, tmp_path / 'a.pth')
    named = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))))
    for model, expected in ((named, None), (dict(layers=[named]), None), ({}, f'poa://{tmp_path / "a.pth"}')):
        cfg = Config(dict(model=model, load_from=str(tmp_path / 'a.pth'), work_dir=str(tmp_path / 'work')))
        assert set_start(cfg) is None
        assert cfg.load_from == expected


def test_a_start_from_another_supernet(supernets):
    from mmengine.registry import MODELS

    from poa_mm.checkpoint import describe_supernet

    backbone = supernets['vit']
    checkpoint = {'state_dict': {}, 'poa': describe_supernet(dict(backbone=backbone))}
    same = SimpleNamespace(backbone=MODELS.build(backbone | dict(widths=[32, 64])))
    check_start(checkpoint, same, 'poa.pth')
    check_start({'state_dict': {}}, same, 'poa.pth')
    arch = dict(backbone['arch'], num_heads=2)
    other = SimpleNamespace(backbone=MODELS.build(backbone | dict(arch=arch, widths=[32, 64])))
    with pytest.raises(CheckpointError, match=r'poa\.pth: .* arch is .*in the checkpoint'):
        check_start(checkpoint, other, 'poa.pth')
