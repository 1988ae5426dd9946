"""Loads exported files as their users do, and says how far their outputs are from those of the subnet.

A program of its own, run in a process where neither poa_mm nor OpenMMLab can be imported:

    python standalone.py JOBS.json

The file lists jobs (``format``, ``path`` and what else a format needs) and names the tensors that they are compared
with. The differences go to ``RESULTS`` beside it, by job.
"""

import json
import sys
from pathlib import Path

BANNED = ('poa_mm', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')
RESULTS = 'results.json'


def largest_difference(found, expected):
    """Of two tensors; infinite if they have not the same shape or are not finite."""
    import torch

    found = torch.as_tensor(found)
    if found.shape != expected.shape:
        raise ValueError(f'expected outputs of shape {tuple(expected.shape)}, found {tuple(found.shape)}')
    difference = (found.double() - expected.double()).abs().max().item()
    return difference if difference == difference else float('inf')


def compare(outputs, case):
    """``features`` and ``feature_map`` with those of the subnet."""
    return max(largest_difference(found, case[name]) for name, found in outputs.items())


def run_timm(job, cases):
    import timm
    import torch

    arguments = dict(job['arguments'])
    name = arguments.pop('name')
    networks = [
        timm.create_model(name, **arguments, checkpoint_path=f'{job["path"]}/model.safetensors'),
        timm.create_model(f'local-dir:{job["path"]}', pretrained=True, num_classes=0),
    ]
    differences = []
    for network in networks:
        network.eval()
        for case in cases:
            with torch.no_grad():
                features, x = network(case['images']), network.forward_features(case['images'])
            last = getattr(network, 'output_fmt', '') == 'NHWC'
            outputs = {'features': features, 'feature_map': as_map(x, case['feature_map'].shape, last)}
            differences.append(compare(outputs, case))
    return max(differences)


def as_map(x, shape, channels_last=False):
    """Outputs of timm and transformers as a map ``(B, D, rows, columns)``."""
    if channels_last:
        return x.permute(0, 3, 1, 2)
    if x.ndim == 3:  # (B, tokens, D), a class token first
        rows, columns = shape[-2:]
        return x[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
    return x


def run_huggingface(job, cases):
    import torch
    from transformers import AutoModel

    network, info = AutoModel.from_pretrained(job['path'], output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise ValueError(f'the weights do not fit {type(network).__name__}: {wrong}')
    network.eval()
    differences = []
    for case in cases:
        with torch.no_grad():
            found = network(case['images'])
        outputs = {
            'features': found.pooler_output,
            'feature_map': as_map(found.last_hidden_state, case['feature_map'].shape),
        }
        differences.append(compare(outputs, case))
    return max(differences)


def run_processor(job, cases):
    """Image file -> processor -> model."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    processor, network = (loader.from_pretrained(job['path']) for loader in (AutoImageProcessor, AutoModel))
    network.eval()
    differences = []
    for case, file in zip(cases, job['files']):
        with Image.open(file) as image, torch.no_grad():
            found = network(**processor(image, return_tensors='pt'))
        differences.append(largest_difference(found.pooler_output, case['features']))
    return max(differences)


def run_onnx(job, cases):
    import onnx
    import onnxruntime

    onnx.checker.check_model(job['path'], full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(job['path'], options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    differences = []
    for case in cases:
        found = session.run(names, {session.get_inputs()[0].name: case['images'].numpy()})
        differences.append(compare(dict(zip(names, found)), case))
    return max(differences)


def run_torch(job, cases):
    import torch

    network = torch.export.load(job['path']).module()
    differences = []
    for case in cases:
        with torch.no_grad():
            features, feature_map = network(case['images'])
        differences.append(compare({'features': features, 'feature_map': feature_map}, case))
    return max(differences)


RUN = dict(timm=run_timm, huggingface=run_huggingface, processor=run_processor, onnx=run_onnx, torch=run_torch)


def main(path):
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    for name in BANNED:
        sys.modules[name] = None  # importing it is an ImportError
    from safetensors.torch import load_file

    results = []
    for job in json.loads(Path(path).read_text(encoding='utf-8')):
        tensors = load_file(job['tensors'])
        cases = []
        for name in job['cases']:
            parts = {key.split('.')[1]: value for key, value in tensors.items() if key.split('.')[0] == name}
            cases.append(parts)
        try:
            results.append({'difference': RUN[job['format']](job, cases)})
        except Exception as error:
            results.append({'error': f'{type(error).__name__}: {error}'})
    Path(path).with_name(RESULTS).write_text(json.dumps(results), encoding='utf-8')


if __name__ == '__main__':
    main(sys.argv[1])
