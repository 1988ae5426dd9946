"""Packaging; the pins of the stacks live in requirements/.

``poa_mm/.mim`` links to configs, tools and model-index.yml, as OpenMMLab packages have them. A wheel holds the files.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Lines of requirements/NAME.txt without comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def version() -> str:
    scope: dict = {}
    exec((ROOT / 'poa_mm' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='poa_mm',
    version=version(),
    description='POA for OpenMMLab: pre-train one network without labels, get every size of it',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['poa_mm', 'poa_mm.*']),
    package_data={
        'poa_mm': ['py.typed', '.mim/model-index.yml', '.mim/configs/**/*', '.mim/tools/**/*'],
        'poa_mm.evaluation': ['page/*'],
    },
    exclude_package_data={'poa_mm': ['.mim/**/__pycache__/*']},
    keywords='self-supervised learning, pre-training, elastic networks, OpenMMLab',
    url='https://arxiv.org/abs/2408.01031',
    project_urls={
        'Paper': 'https://arxiv.org/abs/2408.01031',
        "The authors' code": 'https://github.com/Qichuzyy/POA',
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Intended Audience :: Developers',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    install_requires=requirements('runtime'),
    # mmcv's C++ ops must be compiled without build isolation: see README.
    extras_require={name: requirements(name) for name in ('onedl', 'openmmlab', 'export', 'datasets', 'docs', 'dev')},
)
