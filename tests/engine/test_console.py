import logging

import pytest
from mmengine.config import Config

from poa_mm.engine.console import ShortConsoleRunner, ShortRecords


def record(text, level=logging.INFO, *args):
    return logging.LogRecord('a', level, 'file', 1, text, args, None)


@pytest.mark.parametrize(
    ('text', 'passes'),
    [
        ('loss: 3.1', True),
        ('x' * 600, True),
        ('x' * 601, False),
        ('a\nb\nc', True),
        ('\n'.join('a' * 9), False),
    ],
)
def test_length(text, passes):
    assert ShortRecords().filter(record(text)) is passes
    assert ShortRecords().filter(record(text, logging.WARNING))


def test_arguments_count():
    assert not ShortRecords().filter(record('config: %s', logging.INFO, 'x' * 700))


def test_the_file_has_what_the_screen_leaves_out(run_config, tmp_path, capsys):
    cfg = run_config.to_dict() | dict(log_level='INFO', experiment_name='console')
    cfg['train_cfg']['max_iters'] = 1
    runner = ShortConsoleRunner.from_cfg(Config(cfg))
    runner.train()
    screen = capsys.readouterr().out
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    for part in ('System environment', 'Config:', 'Hooks will be executed'):
        assert part in log
        assert part not in screen
    lines = screen.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) < 600
    assert 'Saving checkpoint' in screen or 'Checkpoints will be saved' in screen
