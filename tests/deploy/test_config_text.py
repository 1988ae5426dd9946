"""Whatever a name or a value holds, a config that extraction writes can be read, and says just that."""

import ast
import math
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from poa_mm.checkpoint import CheckpointError
from poa_mm.deploy.config_text import downstream_config, feature_config, literal, readable
from poa_mm.deploy.extract import LIBRARIES, extract_subnets

HOSTILE = [
    "it's",
    'a"b',
    '"""',
    "'''",
    'back\\slash',
    '\\u',
    '\\x4',
    '\\N{DASH}',
    '{{ fileDirname }}',
    '{{fileBasename}}',
    '{{_base_.model}}',
    '{{$HOME:x}}',
    '{a}{}',
    '%s %(a)s',
    '# comment',
    'new\nline',
    'carriage\rreturn',
    'Grüße 東京',
    '$(touch made)',
    '"""\nimport os; os.mkdir("made")\n"""',
    "'); __import__('os').mkdir('made'); ('",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(), st.text('\'"\\{}$%u0{}\n _', max_size=12))
values = st.recursive(
    st.one_of(texts, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.tuples(inner, inner),
        st.dictionaries(texts, inner, max_size=3),
    ),
    max_leaves=8,
)
BACKBONE = dict(type='VisionTransformer', arch=dict(embed_dims=32, num_layers=2), img_size=(64, 64), in_channels=3)
ENTRY = dict(
    subnet='32x2', file='poa_32x2.safetensors', format='safetensors', source='a.pth', source_sha256='0', poa_mm='1',
    image_size=[64, 64],
)  # fmt: skip
NORMALISATION = dict(mean=[1.0], std=[2.0], to_rgb=True)


@settings(deadline=None)
@given(values)
def test_a_literal_is_its_value(value):
    source = literal(value)
    found = eval(source, {'__builtins__': {'float': float}})
    assert found == value
    assert type(found) is type(value)
    assert '{{' not in source  # which mmengine would replace
    assert source.isascii()
    assert '\n' not in source


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, [math.nan], '\udcff'])
def test_what_python_cannot_spell(value):
    assert repr(eval(literal(value))) == repr(value)


@pytest.mark.parametrize('value', [{1, 2}, b'bytes', object(), [1, range(3)], Path('a')])
def test_what_is_no_literal_is_refused(value):
    with pytest.raises(TypeError, match='cannot be written into a config'):
        literal(value)


@settings(deadline=None)
@given(texts)
def test_a_readable_name_is_harmless_in_a_docstring(text):
    (statement,) = ast.parse(f'"""{readable(text)}"""').body
    assert ast.literal_eval(statement.value) == readable(text)
    assert '{' not in readable(text)


def feature(source, backbone=BACKBONE):
    return feature_config(dict(ENTRY, source=source), backbone, None, 32, NORMALISATION, own_class=False)


def downstream(source, backbone=BACKBONE):
    return downstream_config(
        dict(ENTRY, source=source), 'mmdet', 'x.py', 'detector', backbone, "model['data_preprocessor']", {}, 0.9
    )


@settings(deadline=None, max_examples=50)
@given(texts, texts)
@pytest.mark.parametrize('write', [feature, downstream])
def test_names_and_values_do_not_change_the_program(write, source, value):
    """Only the docstring and the literals of a config differ from those with plain names."""

    def shape(text):
        tree = ast.parse(text)
        docstring, *rest = tree.body
        assert isinstance(ast.literal_eval(docstring.value), str)
        found = [type(node).__name__ for statement in rest for node in ast.walk(statement)]
        return found, [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]

    plain, _ = shape(write('a', dict(BACKBONE, interpolate_mode='b')))
    found, constants = shape(write(source, dict(BACKBONE, interpolate_mode=value)))
    assert found == plain
    assert value in constants


names = texts.map(lambda text: text.replace('/', '_').replace('\0', '_')).filter(
    lambda text: (text not in ('', '.', '..') and text.isprintable()) or (text in HOSTILE and '/' not in text)
)


@settings(max_examples=40, deadline=None)
@given(names)
@example('{{ fileDirname }}')
@example('"""\nimport os; os.mkdir("made")\n"""')
def test_a_config_finds_its_weights_in_a_folder_of_any_name(tmp_path_factory, name):
    try:
        folder = tmp_path_factory.getbasetemp() / 'any' / name[:40]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeError):  # not a name for this file system
        return
    path = folder / 'poa_32x2.py'
    path.write_text(feature(name, dict(BACKBONE, interpolate_mode=name)), encoding='utf-8')
    cfg = Config.fromfile(path)
    assert cfg.load_from == cfg.model.backbone.init_cfg.checkpoint == str(folder / 'poa_32x2.safetensors')
    assert cfg.model.backbone.interpolate_mode == name
    assert not {'os', 'beside'} & set(cfg)


@pytest.mark.parametrize(
    ('name', 'libraries'),
    [
        ("it's {{ fileDirname }} \\u {{_base_.x}} {{$HOME:x}}", LIBRARIES),
        ('"""\nimport os; os.mkdir("made")\n"""', ()),
    ],
)
def test_extraction_of_a_checkpoint_of_any_name_to_a_folder_of_any_name(
    checkpoint, tmp_path, monkeypatch, name, libraries
):
    monkeypatch.chdir(tmp_path)
    source = shutil.copy(checkpoint, tmp_path / f'{name}.pth')
    extract_subnets(source, ['32x4'], tmp_path / name, verify=False, libraries=libraries)
    for config in ('', *(f'_{library}' for library in libraries)):
        cfg = Config.fromfile(tmp_path / name / f'poa_32x4{config}.py')
        assert os.path.samefile(cfg.model.backbone.init_cfg.checkpoint, tmp_path / name / 'poa_32x4.safetensors')
    assert not (tmp_path / 'made').exists()


def test_a_description_that_is_no_plain_value_is_refused(checkpoint, tmp_path):
    import torch

    content = torch.load(checkpoint, weights_only=True)
    content['poa']['data_preprocessor']['mean'] = torch.zeros(3)
    torch.save(content, tmp_path / 'poa.pth')
    with pytest.raises(CheckpointError, match=r'poa\.pth: tensor.* cannot be written into a config'):
        extract_subnets(tmp_path / 'poa.pth', ['32x2'], tmp_path / 'out', verify=False)
    assert not (tmp_path / 'out').exists()
