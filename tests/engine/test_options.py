import argparse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from poa_mm.engine.config_keys import READ_BY_A_RUN, find
from poa_mm.engine.launch import read_config
from poa_mm.engine.options import OptionError, Text, add_config_options, merge_options, parse

CONFIGS = Path(__file__).parents[2] / 'configs'
FOLDER, DIGITS = CONFIGS / 'poa' / 'vits_folder.py', CONFIGS / 'poa' / 'vitt_digits.py'
PATH = 'train_dataloader.dataset.data_prefix'


def given_as(*pairs):
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


@pytest.fixture(scope='module')
def texts():
    return {path: Config.fromfile(path) for path in (FOLDER, DIGITS)}


@pytest.fixture
def config(texts):
    def copy(path=FOLDER):
        return Config(texts[path].to_dict())

    return copy


def test_what_reads_a_key_is_looked_up_in_silence(config, capsys):
    """Of a class that nothing knows every registry is asked, and a library has not one of each kind."""
    MMLogger.get_instance('of this test')  # what is logged comes here
    cfg = config()
    cfg.model.type = 'NoSuchModel'
    with DefaultScope.overwrite_default_scope('mmengine'):
        merge_options(cfg, given_as('model.hidden=3', 'train_cfg.max_iters=2'))
    assert (cfg.model.hidden, cfg.train_cfg.max_iters) == (3, 2)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(
    'path',
    [
        'my pics',
        'pics,all',
        '2023',
        '1e5',
        'None',
        'True',
        '[a]',
        '(1, 2)',
        "it's",
        '"quoted"',
        ' x ',
        'a=b',
        '{x}',
        '',
    ],
)
def test_a_text_stays_the_text(config, path):
    cfg = config()
    merge_options(cfg, given_as(f'{PATH}={path}'))
    assert find(cfg, PATH) == path


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_stays_the_text(text):
    assert parse(text, 'held') == text
    parse_or_refuse(text)


def parse_or_refuse(text):
    for held in (None, 1, 0.5, True, (1, 2), [1], {}, ['held']):
        try:
            parse(text, held)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ('text', 'held', 'value'),
    [
        ('3', 1, 3),
        ('1e3', 1, 1000),
        ('0.5', 1, 0.5),
        ('1e-3', 0.1, 1e-3),
        ('true', False, True),
        ('False', True, False),
        ('None', 3, None),
        ('3', None, 3),
        ('a b', None, 'a b'),
        ('/data/a,b c', None, '/data/a,b c'),
        ('a,b', None, ['a', 'b']),
        ('1,2', None, [1, 2]),
        ('1,2', (3, 4), (1, 2)),
        ('[1,2]', (3, 4), (1, 2)),
        ('(1,2)', [3], (1, 2)),
        ('[(1,2),[a,b],c]', None, [(1, 2), ['a', 'b'], 'c']),
        ("['a, b', 2]", None, ['a, b', 2]),
        ("{'type': 'X', 'a': [1]}", None, {'type': 'X', 'a': [1]}),
        ('1,2', ['a'], ['1', '2']),
        ('my mod', ['a'], ['my mod']),
        ("['a, b','2']", ['a'], ['a, b', '2']),
        ('a, b', ('x',), ('a', 'b')),
        ('small', dict(embed_dims=3), 'small'),
    ],
)
def test_what_values_mean(text, held, value):
    found = parse(text, held)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize('name', ['load_from', 'checkpoint', 'data_root'])
@pytest.mark.parametrize('path', ['2023', 'a, b.pth', 'True', '1e5'])
def test_names_of_files_are_texts_where_there_was_none(name, path):
    assert parse(path, None, name) == path
    assert parse('None', None, name) is None


@pytest.mark.parametrize(('text', 'held'), [('flase', False), ('0.5', True), ('[1,(2]', 1), ('[a)]', None)])
def test_what_cannot_be_meant_is_refused(text, held):
    with pytest.raises(ValueError, match=r'True or False|brackets'):
        parse(text, held)


def test_an_argument_that_the_config_leaves_out_is_as_its_default(config):
    cfg = config()
    merge_options(
        cfg,
        given_as(
            *('train_dataloader.dataset.data_root=2023', 'model.backbone.init_cfg.type=Pretrained', 'work_dir=7'),
            *('model.backbone.init_cfg.checkpoint=a, b', 'train_cfg.val_interval=5', 'experiment_name=1e3'),
        ),
    )
    assert cfg.train_dataloader.dataset.data_root == '2023'
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='a, b')
    assert (cfg.train_cfg.val_interval, cfg.work_dir, cfg.experiment_name) == (5, '7', '1e3')


# --- keys that nothing reads ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('batch_size=32', 'recipe.batch_size, train_dataloader.batch_size'),
        ('accumulate=4', 'recipe.accumulate'),
        ('epochs=20', 'recipe.epochs'),
        ('images=500', 'recipe.images'),
        ('max_iters=10', 'train_cfg.max_iters'),
        ('base_lr=0.1', 'recipe.lr'),
        ('lr=0.1', 'recipe.lr, optim_wrapper.optimizer.lr'),
        ('train_pipeline.2.prob=0.3', r'this works: train_dataloader.dataset.pipeline.2.prob'),
        ('train_root=x', 'other entries were computed from it'),
        ('vis_backends.0.type=X', 'visualizer.vis_backends.0.type'),
        ('knn_pipeline.0.type=X', 'knn.bank.dataset.pipeline.0.type'),
        ('data_preprocessor.mean=1,2,3', 'this works: model.data_preprocessor.mean'),
        ('launcher=pytorch', 'nothing reads launcher'),
        ('batchsize=3', 'batch_size'),
        ('trian_cfg.max_iters=3', 'train_cfg'),
        ('moddel.koleo_weight=3', 'model.koleo_weight'),
        ('nonsense=3', 'valid begin with one of'),
        ('train_cfg.maxiters=3', 'this works: train_cfg.max_iters'),
        ('train_cfg.max_iter=3', 'this works: train_cfg.max_iters'),
        ('train_dataloader.batchsize=3', 'this works: train_dataloader.batch_size'),
        ('train_dataloader.dataset.data_prefx=x', 'train_dataloader.dataset.data_prefix'),
        ('optim_wrapper.accumulate_counts=3', 'optim_wrapper.accumulative_counts'),
        ('optim_wrapper.optimizer.learning_rate=3', 'optim_wrapper.optimizer'),
        ('optim_wrapper.clip_grad.maxnorm=3', 'optim_wrapper.clip_grad.max_norm'),
        ('model.koleo_weigth=3', 'model.koleo_weight'),
        ('model.backbone.dropp_path_rate=3', 'model.backbone.drop_path_rate'),
        ('randomness.sede=3', 'randomness.seed'),
        ('env_cfg.cudnn_benchmrk=True', 'env_cfg.cudnn_benchmark'),
        ('env_cfg.dist_cfg.timeuot=3', 'env_cfg.dist_cfg.timeout'),
        ('default_hooks.checkpiont.interval=3', 'default_hooks.checkpoint'),
        ('default_hooks.checkpoint.intervall=3', 'default_hooks.checkpoint.interval'),
        ('custom_hooks.9.momentum=3', 'custom_hooks is a list of 3; valid: custom_hooks.0 to custom_hooks.2'),
        ('custom_hooks.first.momentum=3', 'valid: custom_hooks.0'),
        ('custom_hooks.1.patch_start=3', 'custom_hooks.1.patch_loss_start'),
        ('log_level.x=3', "log_level is 'INFO', which has nothing below it"),
        ('optim_wrapper.optimizer.betas.1=0.9', 'set as a whole: optim_wrapper.optimizer.betas='),
        ('recipe.batchsize=3', 'recipe has no batchsize; valid: batch_size'),
        ('knn.temprature=3', 'knn.temperature'),
        ('knn.bank.bach_size=3', 'knn.bank.batch_size'),
        ('resume=yes', 'expected True or False'),
    ],
)
def test_a_key_that_nothing_reads_is_refused_with_one_that_works(config, option, message):
    cfg = config()
    before = cfg.to_dict()
    with pytest.raises(ValueError, match=message) as error:
        merge_options(cfg, given_as(option))
    assert '\n' not in str(error.value)
    if option.split('=')[0].count('.') == 0:
        assert cfg.to_dict() == before


@pytest.mark.parametrize(
    'options',
    [
        ['train_cfg.max_iters=3', 'train_dataloader.batch_size=2', 'train_dataloader.prefetch_factor=4'],
        ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=x.pth', 'load_from=x.pth'],
        ['runner_type=FlexibleRunner', 'strategy.type=FullyShardStrategy', 'strategy.param_dtype=bfloat16'],
        ['model.deck.sync=True', 'model.weight_is=0', 'model.backbone.with_cp=True', 'find_unused_parameters=True'],
        ['train_dataloader.dataset.pipeline.2.prob=0.3', 'custom_hooks.1.patch_loss_start=0', 'resume=True'],
        ['default_hooks.visualization.type=VisualizationHook', 'visualizer.vis_backends.1.type=WandbVisBackend'],
        ['auto_scale_lr.base_batch_size=16', 'randomness.deterministic=True', 'env_cfg.dist_cfg.timeout=30'],
        ['optim_wrapper.paramwise_cfg.custom_keys.head.decay_mult=0', 'optim_wrapper.loss_scale=dynamic'],
        ['train_cfg.allow_other_ranks=True', 'knn.ks=5,10', 'knn.bank.num_workers=0', 'log_processor.window_size=5'],
        ['optim_wrapper.optimizer._delete_=True', 'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=1'],
        ['val_dataloader.batch_size=3', 'val_cfg.type=ValLoop', 'val_evaluator.type=Accuracy'],
    ],
    ids=lambda options: options[0],
)
def test_keys_that_are_read(config, options):
    cfg = config()
    merge_options(cfg, given_as(*options))
    for option in options:
        key, _, value = option.partition('=')
        if '_delete_' not in key:
            found = find(cfg, key)
            found = list(found) if isinstance(found, tuple) else found
            assert found == parse(value, None, key.rpartition('.')[2])


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('[!_]*/[!_]*.py')), ids=lambda path: path.stem)
def test_shipped_configs_keep_what_they_hold(path):
    """The check knows the names that configs use: each of theirs could be given on the command line."""
    cfg = Config.fromfile(path)
    for key in READ_BY_A_RUN & set(cfg):
        before = cfg.to_dict()
        options = {f'{key}.{name}': value for name, value in cfg[key].items()} if isinstance(cfg[key], dict) else {}
        if key != 'recipe' and not (key == 'data_preprocessor' and 'data_preprocessor' in cfg.model):
            held, cfg[key] = cfg[key], type(cfg[key])() if isinstance(cfg[key], dict) else cfg[key]
            if isinstance(held, dict) and 'type' in held:
                cfg[key]['type'] = held['type']
            merge_options(cfg, options)
            assert cfg.to_dict()[key] == before[key]


def test_recipe_numbers_take_effect(config):
    cfg = config()
    numbers = [
        'recipe.batch_size=32',
        'recipe.accumulate=4',
        'recipe.epochs=20',
        'recipe.images=100000',
        'log_level=ERROR',
    ]
    merge_options(cfg, given_as(*numbers))
    assert cfg.train_dataloader.batch_size == 32
    assert cfg.optim_wrapper.accumulative_counts == 4
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.004 * (4 * 32 / 1024) ** 0.5)
    assert cfg.train_cfg.max_iters == 20 * (100_000 // 128 * 4)
    assert cfg.log_level == 'ERROR'


def test_values_of_the_api_are_taken_as_they_are(config):
    cfg = config()
    merge_options(cfg, {PATH: '2023', 'train_cfg.max_iters': 3, 'custom_hooks': []})
    assert (find(cfg, PATH), cfg.train_cfg.max_iters, cfg.custom_hooks) == ('2023', 3, [])
    merge_options(cfg, {'of_a_script': 1})
    merge_options(cfg, None)
    assert cfg.of_a_script == 1


def test_custom_imports_are_imported(config, tmp_path, monkeypatch):
    (tmp_path / 'imported_by_option.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    merge_options(config(), given_as('custom_imports.imports=poa_mm,imported_by_option'))
    import sys

    assert 'imported_by_option' in sys.modules


def test_the_work_dir_is_given_once():
    assert read_config(DIGITS, dict(work_dir=Text('7')), '7').work_dir == '7'
    with pytest.raises(OptionError, match="given twice, as 'a' and as 'b'"):
        read_config(DIGITS, dict(work_dir=Text('b')), 'a')


@pytest.mark.parametrize(
    ('pairs', 'message'),
    [
        (['a'], "expected KEY=VALUE, got 'a'"),
        (['=3'], "expected KEY=VALUE, got '=3'"),
        (['a.b=1', 'a.b=2'], "a.b is given twice, as '1' and as '2'"),
        ([f'{PATH}=my', 'pics'], "got 'pics'"),
    ],
)
def test_mistyped_pairs(pairs, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        given_as(*pairs)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_pairs_add_up():
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    args = parser.parse_args(['--cfg-options', 'a=1', 'b==2=', '--cfg-options', 'c=', 'a=1'])
    assert args.cfg_options == {'a': '1', 'b': '=2=', 'c': ''}
