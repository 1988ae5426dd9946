"""Every block of commands in README and docs is run as it stands, in this process.

A folder holds what the commands name: a supernet of small networks, images, configs. Names that a reader puts in
(``CHECKPOINT``, ``DIR`` ..) and sizes of large networks are replaced. Commands of the full recipes run until they name
the data that is missing.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from documented import PAGES, ROOT, blocks, lines, words
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import poa_mm.engine.resume
from poa_mm.checkpoint import describe_supernet
from poa_mm.compat import is_at_least
from poa_mm.deploy.extract import extract_subnets

pytest.importorskip('mmdet')
EXPORTS = is_at_least('torch', '2.6') and find_spec('onnxruntime') is not None
DEMO = 'work_dirs/demo/vitt_digits/train/iter_1000.pth'
LARGE = 'work_dirs/vitl_in1k/iter_276800.pth'
DIGITS = """
_base_ = 'configs/poa/vitt_digits.py'
model = dict(backbone=dict(aliases=dict(small='64x4', base='96x4')))
few = dict(num_workers=0, dataset=dict(indices=30))
knn = dict(bank=few, query=few)
"""
SUPERNET = dict(  # in the place of ViT-L
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=128, num_layers=4, num_heads=2, feedforward_channels=512),
    widths=[64, 128],
    depths=[4],
    aliases=dict(small='64x4', base='128x4'),
    img_size=224,
    patch_size=16,
    layer_scale_init_value=1e-5,
)
NAMES = {
    'CHECKPOINT': LARGE,
    'CONFIG CHECKPOINT': f'digits.py {DEMO}',
    '768x12': '128x4',
    '384x12': '64x4',
    'CONFIG': 'digits.py',
    'DIR': 'out',
    'SOURCE': 'images',
    'FOLDER': 'images',
    'IMAGE': 'images/a/0.png',
    'GPUS': '8',
    'NODE_RANK=...': 'NODE_RANK=0',
    'MASTER_ADDR=...': 'MASTER_ADDR=localhost',
    'N': '1',
    'B': '2',
    'key=value': 'randomness.seed=1',
    '/path/to/fashion_mnist': 'nowhere',
    '/path/to/emoji': 'nowhere',
}
NOT_SAID = r' \| [^\]]*| \[the same options\]| \[IMAGE \.\.\.\]| \.\.\.'  # what else may come, or may be instead
COCO = 'configs/detection/cascade-mask-rcnn_poa-vit-s-p16_fpn_1x_coco.py'
OF_PAGE = {  # what a word means on a page
    'downstream': {'CONFIG': COCO, 'CONFIG CHECKPOINT': f'{COCO} {LARGE}'},
    'data': {'FOLDER': 'bands'},
    'choosing': {'CHECKPOINT': DEMO},
    'export': {'CHECKPOINT --subnet small --to onnx --fp16': f'{DEMO} --subnet small --to onnx --fp16'},
}
NOT_RUN = {'pip', 'mim', 'source', 'pre-commit', 'git'}  # they would change the environment; test_documented_commands
FEW_IMAGES = ['--cfg-options', 'knn.bank.dataset.indices=30', 'knn.query.dataset.indices=20', 'knn.bank.num_workers=0']
FEW_IMAGES += ['knn.query.num_workers=0']
SMALL = ['--cfg-options', 'model.backbone.arch=deit-tiny', 'model.backbone.widths=[192]', 'recipe.accumulate=1']
SMALL += ['model.backbone.depths=[11,12]', 'model.head.num_prototypes=[16]', 'model.head.hidden_channels=16']


class Case(NamedTuple):
    """What is special about some commands.

    Args:
        pattern: Which ones.
        says: What they end with, and exit code 2. Default: they go well.
        more: Arguments that make them short.
        slow: Whether they take more than a few seconds.
    """

    pattern: str
    says: str | None = None
    more: tuple[str, ...] = ()
    slow: bool = False


CASES = [  # the first that matches
    Case(r'configs/poa/(vitl|swinb|r152|vitb_warm)_in1k\.py \d', 'data_prefix = data/imagenet/train'),
    Case(r'load_from=START', 'START.pth: expected a checkpoint file, found nothing'),
    Case(r'train\.py configs/poa/vits_.*--data', more=tuple(SMALL)),
    Case(r'warm_start\.py', 'WEIGHTS: expected a checkpoint file, found nothing'),
    Case(r'import_public_checkpoint', 'authors.pth: expected a checkpoint file, found nothing'),
    Case(r'dist_train\.sh subnets/', 'data/coco'),
    Case(r'(train|test)(\.py|\.sh) configs/detection', 'data/coco'),
    Case(r'configs/probe', 'data/imagenet'),
    Case(r'eval_knn.* configs/poa', more=tuple(FEW_IMAGES)),
    Case(r'scorecard\.py .*--device cpu cuda', "device 'cuda' is not there"),
    Case(r'select_subnet\.py .*--then', slow=True),
    Case(r'export_subnet', slow=True),
    Case(r'recipe\.max_iters=20', more=('recipe.batch_size=4', 'train_dataloader.num_workers=0')),
    Case(r'downstream_experiment|fashion_scenes|study\.py --(jobs|only)', 'nowhere'),
    Case(r'patch_study', 'data/fashion_mnist'),
    Case(r'study\.py --report', more=('--evidence', 'evidence.json')),
    Case(r'bench_gpu', 'no CUDA device'),
]


def case_of(line):
    return next((case for case in CASES if re.search(case.pattern, line)), Case(''))


def replaced(text, page, python=False):
    """A command, or some Python, with the names that this folder has."""
    names = {**NAMES, **OF_PAGE.get(page, {})}
    text = text if python else re.sub(NOT_SAID, '', text)
    before = "(?<=')" if python else r'(?<![\w./$-])'  # of Python, what is in quotes
    longest = sorted(map(re.escape, names), key=len, reverse=True)
    return re.sub(f'{before}({"|".join(longest)})(?!\\w)|384x12|768x12', lambda match: names[match[0]], text)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What the commands name, once; each test works on a copy."""
    folder = tmp_path_factory.mktemp('documented')
    for name in ('tools', 'configs', 'benchmarks', 'docs', 'Makefile'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'digits.py').write_text(DIGITS)
    digits = Config.fromfile(folder / 'digits.py').model
    large = dict(backbone=SUPERNET, data_preprocessor=digits.data_preprocessor)
    for path, model in ((DEMO, digits), (LARGE, large)):
        backbone = MODELS.build(model['backbone'])
        for param in backbone.parameters():
            torch.nn.init.normal_(param, std=0.1)
        state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({'state_dict': state, 'poa': describe_supernet(model)}, folder / path)
    shutil.copy(folder / LARGE, folder / 'work_dirs/vitl_in1k/iter_2000.pth')
    extract_subnets(folder / LARGE, None, folder / 'subnets', verify=False)
    rng = np.random.default_rng(0)
    for name in ('a/0', 'a/1', 'b/0', 'b/1'):
        for kind, bands in (('images', 3), ('bands', 13)):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (32, 32, bands), np.uint8)
            if bands == 3:
                cv2.imwrite(str(folder / kind / f'{name}.png'), pixels)
            else:
                np.save(folder / kind / f'{name}.npy', pixels.astype(np.uint16) * 16)
    shutil.copy(ROOT / 'docs' / 'evidence.json', folder)
    # Takes the place of Python for the shell scripts: has 64 processors, and says what it was called with.
    (folder / 'python').write_text(
        '#!/bin/sh\ncase "$2" in *device_count*) echo 0;; *affinity*) echo 64;; *) printf "%s\\n" "$@";; esac\n'
    )
    (folder / 'python').chmod(0o755)
    return folder


@pytest.fixture
def shell(folder, tmp_path, monkeypatch, capfd):
    """Runs command lines."""
    here = tmp_path / 'here'
    shutil.copytree(folder, here, symlinks=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr('logging.raiseExceptions', False)  # loggers of one test write to the stderr of another
    monkeypatch.setattr('poa_mm.evaluation.measurement.time_visit', lambda run, clock: [0.002, 0.004])
    monkeypatch.setattr('poa_mm.evaluation.runtimes.TorchRuntime.peak_memory', lambda *args: 1000)
    yield Shell(monkeypatch, capfd)
    DefaultScope._instance_dict.clear()


class Shell:
    def __init__(self, monkeypatch, capfd):
        self.patch, self.capfd, self.variables, self.modules = monkeypatch, capfd, {}, list(sys.path)
        self.lock = threading.Lock()
        monkeypatch.setattr(subprocess, 'call', self.call)

    def run(self, line, more=()):
        """Run a line as a shell would, with more arguments; its exit code, and all that it says."""
        found = [*words(re.sub(r'\$(\w+)', lambda match: self.variables[match[1]], line)), *more]
        if found[0] == 'export':
            found.pop(0)
        while found and (match := re.match(r'(\w+)=(.*)', found[0])):
            self.variables[match[1]] = match[2]
            self.patch.setenv(match[1], match[2])
            found.pop(0)
        if not found or found[0] in NOT_RUN:
            return 0, ''
        program, *arguments = found
        if program == 'make':
            done = subprocess.run([program, '-n', *arguments], cwd=ROOT, capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr
        if program.endswith('.sh'):
            env = {**os.environ, 'PYTHON': os.path.abspath('python')}
            done = subprocess.run([program, *arguments], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            _, *arguments = done.stdout.splitlines()  # torchrun.py
            arguments = arguments[arguments.index(next(word for word in arguments if word.endswith('train.py'))) :]
            launcher = arguments.index('--launcher')
            program, arguments = 'python', arguments[:launcher] + arguments[launcher + 2 :]
        assert program == 'python', f'what is {program}?'
        return self.python(arguments)

    def python(self, arguments):
        self.patch.setattr(sys, 'argv', arguments)
        self.patch.setattr(sys, 'path', [os.path.dirname(arguments[0]), *self.modules])
        self.capfd.readouterr()
        code = 0
        try:
            runpy.run_path(arguments[0], run_name='__main__')
        except SystemExit as stop:
            code = stop.code or 0
        return code, ''.join(self.capfd.readouterr())

    def module(self, arguments):
        self.patch.setattr(sys, 'argv', arguments)
        try:
            runpy.run_module(arguments[0], run_name='__main__')
        except Exception as error:  # as Python shows it
            return 1, f'{type(error).__name__}: {error}'
        return 0, ''

    def call(self, command, stdout=None, **kwargs):
        """In the place of ``subprocess.call``."""
        _, *arguments = map(str, command)
        with self.lock:  # the study has threads
            code, output = self.module(arguments[1:]) if arguments[0] == '-m' else self.python(arguments)
        stdout.write(output)
        return code


BLOCKS = [
    pytest.param(page.stem, block, id=f'{page.name}:{number}')
    for page in PAGES
    for number, block in blocks(page, 'bash')
]
SLOW = [block for block in BLOCKS if any(case_of(line).slow for line in lines(block.values[1]))]


def run_block(shell, page, block, slow):
    for line in lines(block):
        line = line if line.startswith('CHECKPOINT=') else replaced(line, page)
        case = case_of(line)
        if case.slow and not slow:
            continue
        if re.search('onnx|export_subnet', line) and not EXPORTS:
            continue
        if torch.cuda.is_available() and case.says in ('no CUDA device', "device 'cuda' is not there"):
            continue
        if case.says == 'authors.pth: expected a checkpoint file, found nothing':
            line = line.replace(LARGE, 'authors.pth')
        more = case.more[1:] if '--cfg-options' in line and case.more[:1] == ('--cfg-options',) else case.more
        code, output = shell.run(line, more)
        assert code == (0 if case.says is None else 2), f'{line}\n{output[-2000:]}'
        assert case.says is None or case.says in output.splitlines()[-1], line


@pytest.mark.parametrize(('page', 'block'), BLOCKS)
def test_a_block_of_commands_runs(shell, page, block, monkeypatch):
    if '--data' in block:  # trained in tests of tools/train.py
        monkeypatch.setattr('mmengine.runner.Runner.train', lambda self: None)
    run_block(shell, page, block, slow=False)
    if block.startswith('CHECKPOINT='):  # the tour of README
        for path in ('scores/knn.png', 'subnets/poa_48x3.safetensors', 'subnets/poa_96x6.py'):
            assert os.path.isfile(f'work_dirs/{path}')


@pytest.mark.slow
@pytest.mark.parametrize(('page', 'block'), SLOW)
def test_a_slow_block_of_commands_runs(shell, page, block):
    if 'scorecard.json' in block:
        assert shell.run(f'python tools/scorecard.py digits.py {DEMO} -o .')[0] == 0
    run_block(shell, page, block, slow=True)


# --- Python ----------------------------------------------------------------------------------
PYTHON = [
    pytest.param(page.stem, block, id=f'{page.name}:{number}')
    for page in PAGES
    for number, block in blocks(page, 'python')
]


@pytest.mark.parametrize(('page', 'block'), PYTHON)
def test_a_block_of_python_runs(shell, page, block, monkeypatch):
    """What trains or exports is called, but does nothing: other tests do it."""
    monkeypatch.setattr('poa_mm.apis.pretrain', lambda config, data, epochs: LARGE)
    monkeypatch.setattr('poa_mm.apis.export', lambda checkpoint, subnets, **options: None)
    code = replaced(block, page, python=True).replace(*ARCH)
    shutil.copytree('subnets', 'out')
    exec(compile(code, page, 'exec'), dict(poa_mm=poa_mm, cfg=Config(dict(work_dir='new')), CHECKPOINT=LARGE))


ARCH = (
    'embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536',
    'embed_dims=64, num_layers=4, num_heads=1, feedforward_channels=256',
)
