import json
import tarfile

import cv2
import numpy as np
import pytest

from poa_mm.datasets.emoji import write_emoji


def entry(name, category='Smileys & Emotion', there=True):
    return {'image': f'{name}.png', 'category': category, 'has_img_twitter': there}


@pytest.fixture
def package(tmp_path):
    """A package of seven emoji: red, transparent in the upper half."""
    root = tmp_path / 'package'
    (root / 'img' / 'twitter' / '64').mkdir(parents=True)
    entries = [entry(f'1f60{i}') for i in range(4)] + [entry('1f1e6', 'Flags'), entry('1f1e7', 'Flags')]
    entries += [entry('1f3fb', 'Component'), entry('gone', 'Flags', there=False)]
    (root / 'emoji.json').write_text(json.dumps(entries))
    image = np.zeros((64, 64, 4), np.uint8)
    image[..., 2] = 200
    image[32:, :, 3] = 255
    for item in entries[:-1]:
        cv2.imwrite(str(root / 'img' / 'twitter' / '64' / item['image']), image)
    return root


def tarball(package):
    path = package.parent / 'emoji.tgz'
    with tarfile.open(path, 'w:gz') as tar:
        tar.add(package, 'package')
    return path


@pytest.mark.parametrize('form', [lambda root: root, lambda root: root.parent, tarball], ids=['files', 'folder', 'tgz'])
def test_a_package_becomes_folders_of_images(package, tmp_path, form):
    out = tmp_path / 'out'
    assert write_emoji(form(package), out) == {'train': 5, 'test': 1}
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob('*.png')) == [
        'test/smileys_and_emotion/1f601.png',
        'train/flags/1f1e6.png',
        'train/flags/1f1e7.png',
        *(f'train/smileys_and_emotion/1f60{i}.png' for i in (0, 2, 3)),
    ]
    image = cv2.imread(str(out / 'train' / 'flags' / '1f1e6.png'), cv2.IMREAD_UNCHANGED)
    assert image.shape == (64, 64, 3)
    assert (image[:32] == 255).all()
    assert (image[32:] == [0, 0, 200]).all()


def test_grey_and_opaque_images_are_read_too(package, tmp_path):
    images = package / 'img' / 'twitter' / '64'
    cv2.imwrite(str(images / '1f600.png'), np.full((64, 64), 7, np.uint8))
    cv2.imwrite(str(images / '1f602.png'), np.full((64, 64, 3), 9, np.uint8))
    write_emoji(package, tmp_path / 'out')
    folder = tmp_path / 'out' / 'train' / 'smileys_and_emotion'
    assert [cv2.imread(str(folder / f'1f60{i}.png')).max() for i in (0, 2)] == [7, 9]


def test_what_is_no_package_is_refused_and_nothing_written(package, tmp_path):
    out = tmp_path / 'out'
    (tmp_path / 'text.tgz').write_text('no package')
    (tmp_path / 'empty').mkdir()
    for wrong, complaint in (('text.tgz', 'neither a folder'), ('empty', 'not a package')):
        with pytest.raises(ValueError, match=complaint):
            write_emoji(tmp_path / wrong, out)
    with pytest.raises(FileNotFoundError):
        write_emoji(tmp_path / 'nowhere.tgz', out)
    (package / 'img' / 'twitter' / '64' / '1f603.png').write_text('no image')
    with pytest.raises(ValueError, match='is not an image'):
        write_emoji(package, out)
    (package / 'img' / 'twitter' / '64' / '1f603.png').unlink()
    with pytest.raises(ValueError, match='which it lacks'):
        write_emoji(package, out)
    assert not out.exists()


def test_a_folder_in_use_is_left_alone(package, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine').touch()
    with pytest.raises(FileExistsError, match='not empty'):
        write_emoji(package, tmp_path / 'out')
