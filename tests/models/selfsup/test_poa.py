import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.deploy.public_checkpoint import convert_public_state_dict
from poa_mm.elastic import Subnet
from poa_mm.models import POA, MeanCentering
from poa_mm.models.selfsup.batch import MultiCropBatch
from poa_mm.models.selfsup.poa import TeacherTargets

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
    widths=(32, 48, 64),
    depths=(2, 3, 4),
    img_size=64,
    layer_scale_init_value=0.5,
)
HEAD = dict(type='MultiPrototypeHead', num_prototypes=(64, 128), hidden_channels=96, bottleneck_channels=32)
SUBNET = Subnet(32, 2)


@pytest.fixture(scope='module')
def make_poa(randomise):
    """Maker of small models, of the sizes of the golden step, whose student and teacher differ."""

    def make(seed=0, backbone=None, head=None, **options):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = POA(backbone=BACKBONE | (backbone or {}), head=HEAD | (head or {}), **options)
            randomise(model, seed)
        model.train()
        return model

    return make


def make_data(num_images=3, num_local=2, seed=0):
    """Global views of 64 and local views of 32 pixels, and samples with masks, one global crop left unmasked."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(num_images, 3, 64, 64, generator=generator) for _ in range(2)]
    inputs += [torch.randn(num_images, 3, 32, 32, generator=generator) for _ in range(num_local)]
    masks = torch.rand(num_images, 2, 4, 4, generator=generator) < 0.4
    masks[0, 0] = False
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


def always(subnet):
    """A deck that holds one card."""
    return SimpleNamespace(deal=lambda: subnet)


# --- the golden step: the numbers of the authors' code ---


@pytest.fixture(scope='module')
def imported(golden, make_poa):
    """The model with the public weights, its batch, and the public names of the student's parameters."""
    tensors, info = golden('vit_step')
    states, names = {}, {}
    for branch in ('student', 'teacher'):
        public = {name[8:]: value for name, value in tensors.items() if name.startswith(f'{branch}.')}
        states[branch] = convert_public_state_dict(public)
    for name in (name[8:] for name in tensors if name.startswith('student.')):
        (ours,) = convert_public_state_dict({name: tensors[f'student.{name}']})
        names[name] = ours
    model = make_poa(teacher_temp=info['teacher_temp'])
    model.load_state_dict(
        states['student'] | {f'teacher.{name}': value for name, value in states['teacher'].items()}, strict=True
    )
    views = [*tensors['batch.collated_global_crops'].chunk(2), *tensors['batch.collated_local_crops'].chunk(2)]
    masks = tensors['batch.collated_masks'].view(2, 4, 4, 4)  # (crops, images, rows, columns)
    samples = [DataSample(mask=masks[:, image]) for image in range(4)]
    return SimpleNamespace(model=model, inputs=views, samples=samples, names=names, tensors=tensors, info=info)


@pytest.mark.parametrize('subnet', [Subnet(*sizes) for sizes in product((32, 48, 64), (2, 3, 4))], ids=str)
@torch.no_grad()
def test_golden_features(imported, subnet):
    backbone, tensors = imported.model.teacher['backbone'], imported.tensors
    on_global = backbone.extract_features(tensors['batch.collated_global_crops'], subnet)
    on_local = backbone.extract_features(tensors['batch.collated_local_crops'], subnet)
    assert_close(on_global.cls, tensors[f'features.{subnet}.global.cls'], rtol=0, atol=1e-5)
    assert_close(on_global.patch, tensors[f'features.{subnet}.global.patch'], rtol=0, atol=1e-5)
    assert_close(on_local.cls, tensors[f'features.{subnet}.local.cls'], rtol=0, atol=1e-5)


@pytest.fixture(scope='module', params=['32x2.ibot=1', '32x2.ibot=0', '48x3.ibot=1', '48x3.ibot=0'])
def golden_step(imported, request):
    """One step with the elastic student and the patch loss that the name says, down to the gradients."""
    model = imported.model
    subnet, patch_loss = request.param.split('.ibot=')
    model.patch_loss_active = patch_loss == '1'
    model.deck = always(Subnet.parse(subnet))
    model.zero_grad()
    batch = MultiCropBatch.collate(imported.inputs, imported.samples, (4, 4), masked=model.patch_loss_active)
    total, terms = model.loss_terms(batch, model.teacher_targets(batch), model.deck.deal())
    total.backward()
    return SimpleNamespace(terms=terms, total=total, expected=imported.info['networks'][request.param])


def test_golden_terms(golden_step):
    terms, expected = golden_step.terms, golden_step.expected['terms']
    ours = {'koleo_loss': 0.1 * terms['koleo'] / 2}
    for head, view in product(range(2), ('local', 'global')):
        cross_view = 0.8 * terms[f'L_IS_{view}'][head] + 0.2 * terms[f'L_ES1_{view}'][head]
        ours[f'dino_{view}_crops_loss_{head}'] = cross_view
        ours[f'distill_{view}_crops_loss_{head}'] = terms[f'L_ES2_{view}'][head]
        if 'L_IS_patch' in terms:
            patch = 0.8 * terms['L_IS_patch'][head] + 0.2 * terms['L_ES1_patch'][head]
            ours[f'ibot_loss_{head}'] = patch / 2
    assert_close({name: value.item() for name, value in ours.items()}, expected, rtol=1e-5, atol=0)


def test_golden_total(golden_step, imported):
    total = golden_step.expected['total']
    assert_close(golden_step.total.item(), total, rtol=1e-5, atol=0)
    whole_step = imported.model.loss(imported.inputs, imported.samples)
    assert_close(whole_step['loss'].item(), total, rtol=1e-5, atol=0)


def test_golden_gradients(golden_step, imported):
    params = dict(imported.model.named_parameters())
    norms, without = golden_step.expected['grad_norm'], golden_step.expected['no_grad']
    assert {*norms, *without} == set(imported.names)
    ours = {name: params[imported.names[name]].grad.norm().item() for name in norms}
    assert_close(ours, norms, rtol=1e-3, atol=1e-7)
    for name in without:
        grad = params[imported.names[name]].grad
        assert grad is None or not grad.any(), name


# --- switches: a weight of zero removes its branch ---

IS, ES1, ES2 = ({f'L_{name}', f'L_{name}_global', f'L_{name}_local'} for name in ('IS', 'ES1', 'ES2'))
PATCH = {'L_IS_patch', 'L_ES1_patch'}
HEALTH = {f'{name}_{number}' for name in ('teacher_entropy', 'prototypes_in_use') for number in (64, 128)}
INTACT, ELASTIC, TARGET = ('intact', True), ('elastic', True), ('intact', False)
ABLATIONS = {
    'everything': ({}, [INTACT, ELASTIC], IS | ES1 | ES2 | PATCH | {'koleo'}),
    'without L_ES2': (dict(weight_es2=0), [INTACT, ELASTIC], IS | ES1 | PATCH | {'koleo'}),
    'without L_ES1': (dict(weight_es1=0), [INTACT, ELASTIC], IS | ES2 | {'L_IS_patch', 'koleo'}),
    'intact student alone': (dict(weight_es1=0, weight_es2=0), [INTACT], IS | {'L_IS_patch', 'koleo'}),
    'elastic student alone': (dict(weight_is=0, weight_es2=0), [ELASTIC], ES1 | {'L_ES1_patch', 'koleo'}),
    'without L_IS': (dict(weight_is=0), [TARGET, ELASTIC], ES1 | ES2 | {'L_ES1_patch', 'koleo'}),
    'same view alone': (dict(weight_is=0, weight_es1=0), [TARGET, ELASTIC], ES2 | {'koleo'}),
    'without patch loss': (dict(patch_weight=0), [INTACT, ELASTIC], IS | ES1 | ES2 | {'koleo'}),
    'without KoLeo': (dict(koleo_weight=0), [INTACT, ELASTIC], IS | ES1 | ES2 | PATCH),
}


@pytest.fixture(params=ABLATIONS)
def ablation(request, make_poa):
    """A model with the weights of one row, the students it runs (with gradient or not) and what it logs."""
    options, students, terms = ABLATIONS[request.param]
    model = make_poa(**options)
    if model.deck is not None:
        model.deck = always(SUBNET)
    return SimpleNamespace(model=model, students=students, terms=terms)


def test_only_what_is_needed_runs(ablation):
    model, ran = ablation.model, []
    extract = model.backbone.extract_features

    def spy(x, subnet=None, mask=None):
        ran.append(('intact' if subnet is None else 'elastic', torch.is_grad_enabled()))
        return extract(x, subnet, mask)

    model.backbone.extract_features = spy
    losses = model.loss(**make_data())
    assert ran == [student for student in ablation.students for _ in ('global views', 'local views')]
    assert set(losses) == ablation.terms | HEALTH | {'loss'}
    assert (model.deck is not None) == model.runs_elastic == (ELASTIC in ablation.students)


def test_total_is_the_weighted_sum(ablation):
    model = ablation.model
    log = {name: value.item() for name, value in model.loss(**make_data()).items()}
    assert all(value > 0 for name, value in log.items() if name != 'koleo')
    expected = model.koleo_weight * log.get('koleo', 0)
    for name, weight in (('L_IS', model.weight_is), ('L_ES1', model.weight_es1), ('L_ES2', model.weight_es2)):
        if name in log:
            patch = model.patch_weight * log.get(f'{name}_patch', 0)
            assert_close(log[name], log[f'{name}_global'] + log[f'{name}_local'] + patch, rtol=1e-5, atol=0)
            expected += weight * log[name]
    assert_close(log['loss'], expected, rtol=1e-5, atol=0)


def test_gradient_reaches_the_students_that_learn(ablation):
    model = ablation.model
    model.loss(**make_data())['loss'].backward()
    middle = [param.grad for layer in model.backbone.layers[1:3] for param in layer.parameters()]
    tail = model.backbone.layers[0].attn.proj.weight.grad[:, 32:]
    if INTACT in ablation.students:
        assert all(grad.any() for grad in middle) and tail.all()
    else:  # 32x2 keeps the first and the last block, and the first 32 channels
        assert all(grad is None for grad in middle) and not tail.any()


def test_weights_scale_their_terms(make_poa):
    """The terms do not change with the weights, the total does."""
    data = make_data()
    one = make_poa().loss(**data)
    two = make_poa(weight_is=0.5, weight_es1=0.3, weight_es2=0.7, patch_weight=2, koleo_weight=0.4).loss(**data)
    for name in PATCH | {'koleo', 'L_IS_global', 'L_ES1_local', 'L_ES2_global'}:
        assert_close(one[name], two[name])
    expected = 0.5 * two['L_IS'] + 0.3 * two['L_ES1'] + 0.7 * two['L_ES2'] + 0.4 * two['koleo']
    assert_close(two['loss'], expected)


@pytest.mark.parametrize(
    'weights, students',
    [
        ({}, [None, SUBNET]),
        (dict(weight_es1=0, weight_es2=0), [None]),
        (dict(weight_is=0), [SUBNET]),
        (dict(weight_is=0, weight_es2=0), [SUBNET]),
    ],
)
def test_koleo_is_the_mean_over_the_students_that_learn(make_poa, weights, students):
    """The sum over the two global crops, each by itself."""
    model = make_poa(**weights)
    if model.deck is not None:
        model.deck = always(SUBNET)
    model.patch_loss_active = False
    data = make_data()
    expected = [
        sum(model.koleo(model.backbone.extract_features(crop, subnet).cls) for crop in data['inputs'][:2])
        for subnet in students
    ]
    assert_close(model.loss(**data)['koleo'], sum(expected).detach() / len(students))


def test_losses_are_means_over_the_heads(make_poa):
    model = make_poa()
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=True)
    _, terms = model.loss_terms(batch, model.teacher_targets(batch), SUBNET)
    log = model.log(terms)
    assert terms.pop('koleo').ndim == 0
    assert set(terms) == (IS | ES1 | ES2 | PATCH) - {'L_IS', 'L_ES1', 'L_ES2'}
    for name, term in terms.items():
        assert term.shape == (2,)
        assert_close(log[name], (term[0] + term[1]) / 2)


def test_one_head(make_poa):
    model = make_poa(head=dict(num_prototypes=(64,)))
    assert model.loss(**make_data())['loss'].isfinite()


@pytest.mark.parametrize(
    'weights',
    [
        dict(weight_is=0, weight_es1=0, weight_es2=0),
        dict(weight_is=-0.1),
        dict(weight_es1=-0.1),
        dict(weight_es2=-0.1),
        dict(patch_weight=-1),
        dict(koleo_weight=-1),
    ],
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match='weights must not be negative and one of the three losses must be on'):
        POA(backbone=BACKBONE, head=HEAD, **weights)


@pytest.mark.parametrize('name', ['weight_is', 'weight_es1', 'weight_es2', 'patch_weight', 'koleo_weight'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match='weights must be finite numbers'):
        POA(backbone=BACKBONE, head=HEAD, **{name: value})


def test_a_batch_without_views_is_refused(make_poa):
    with pytest.raises(ValueError, match='the first two views must be global crops'):
        make_poa().loss([])


@pytest.mark.parametrize('weights', [{}, dict(weight_is=0), dict(weight_is=0, weight_es1=0)], ids=str)
def test_mixed_precision_gives_gradients_to_the_same_parameters(make_poa, weights):
    """Autocast keeps casts of weights; those of a pass without gradient must not serve one with."""

    def trained(autocast):
        model = make_poa(**weights)
        model.deck = always(SUBNET)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            losses = model.loss(**make_data())
        losses['loss'].backward()
        return {name for name, param in model.named_parameters() if param.grad is not None}

    assert trained(autocast=True) == trained(autocast=False)


@pytest.mark.parametrize('weights', [{}, dict(weight_is=0)], ids=str)
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
def test_activation_checkpointing_changes_nothing(make_poa, weights, autocast):
    """Not even the last bit, though autocast keeps casts of weights and each pass ends before the next starts."""

    def step(with_cp):
        model = make_poa(backbone=dict(with_cp=with_cp, drop_path_rate=0.5), **weights)
        model.deck = always(SUBNET)
        torch.manual_seed(0)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
            losses = model.loss(**make_data())
        losses['loss'].backward()
        return losses, {name: param.grad for name, param in model.named_parameters()}

    assert_close(step(with_cp=True), step(with_cp=False), rtol=0, atol=0)


def test_deck_takes_no_seed():
    with pytest.raises(ValueError, match='may set sync and select_scale'):
        POA(backbone=BACKBONE, head=HEAD, deck=dict(seed=1))


# --- the patch loss and its switch ---


def test_inactive_patch_loss_needs_no_masks_and_hides_nothing(make_poa):
    model = make_poa()
    data = make_data()
    model.deck = always(SUBNET)
    model.patch_loss_active = False
    without_samples = model.loss(data['inputs'])
    assert not PATCH & set(without_samples)
    assert_close(model.loss(**data), without_samples)
    weightless = make_poa(patch_weight=0)
    weightless.deck = always(SUBNET)
    assert_close(weightless.loss(data['inputs']), without_samples)


def test_active_patch_loss_needs_masks(make_poa):
    with pytest.raises(ValueError, match='3 data samples with a mask are needed'):
        make_poa().loss(make_data()['inputs'])


def test_masks_hide_patches_from_the_students_only(make_poa):
    """Pixels below a mask reach the loss through the teacher, never through a student's features."""
    model = make_poa()
    data = make_data()
    batch = MultiCropBatch.collate(**data, mask_grid=(4, 4), masked=True)
    hidden = batch.masks.view(-1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    other = batch._replace(global_views=torch.where(hidden, batch.global_views + 1, batch.global_views))
    for subnet in (None, SUBNET):
        assert_close(model.student_output(other, subnet, 'global'), model.student_output(batch, subnet, 'global'))
    assert not torch.allclose(model.teacher_targets(other).cls[0], model.teacher_targets(batch).cls[0])


def test_batch_without_any_masked_patch(make_poa):
    data = make_data()
    for sample in data['data_samples']:
        sample.mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    losses = make_poa().loss(**data)
    assert losses['L_IS_patch'].item() == losses['L_ES1_patch'].item() == 0
    assert losses['loss'].isfinite()


@pytest.mark.parametrize('num_local', [0, 1, 3])
def test_any_number_of_local_crops(make_poa, num_local):
    losses = make_poa().loss(**make_data(num_local=num_local))
    for name in ('L_IS', 'L_ES1', 'L_ES2'):
        assert (f'{name}_local' in losses) == (num_local > 0)
    assert losses['loss'].isfinite()


@pytest.mark.parametrize('patch_loss_active', [True, False])
def test_every_student_parameter_takes_part(make_poa, patch_loss_active):
    """So that distributed training need not look for unused parameters."""
    model = make_poa()
    model.patch_loss_active = patch_loss_active
    model.loss(**make_data())['loss'].backward()
    without = [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None]
    assert not without


# --- the teacher ---


def test_targets(make_poa):
    model = make_poa()
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=True)
    targets = model.teacher_targets(batch)
    masked = int(batch.masks.sum())
    assert [target.shape for target in targets.cls] == [(6, 64), (6, 128)]
    assert [target.shape for target in targets.patch] == [(masked, 64), (masked, 128)]
    for target in targets.cls + targets.patch:
        assert not target.requires_grad
        assert_close(target.sum(dim=1), torch.ones(len(target)))


def test_entropy_of_the_targets(make_poa):
    """Of the targets that the students learn from; log K where they are uniform."""
    model = make_poa()
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=True)
    targets = model.teacher_targets(batch)
    health = targets.health()
    for number, target in zip((64, 128), targets.cls):
        entropy = torch.distributions.Categorical(target).entropy().mean()
        assert_close(health[f'teacher_entropy_{number}'], entropy)
        assert health[f'prototypes_in_use_{number}'] == len(set(target.argmax(dim=1).tolist()))
    sharp, soft = (make_poa(teacher_temp=temp).loss(**make_data()) for temp in (1e-3, 1e3))
    for number in (64, 128):
        assert 0 <= sharp[f'teacher_entropy_{number}'] < soft[f'teacher_entropy_{number}'] - 0.5
        assert_close(soft[f'teacher_entropy_{number}'].item(), math.log(number), rtol=1e-3, atol=0)


def test_prototypes_in_use():
    same, other = torch.eye(8)[[3, 3, 3, 3]], torch.eye(16)[[0, 5, 5, 9]]
    health = TeacherTargets([same, other], []).health()
    assert health['prototypes_in_use_8'] == 1 and health['prototypes_in_use_16'] == 3


def test_class_and_patch_targets_are_centred_apart(make_poa):
    model = make_poa(centering=dict(type='MeanCentering', momentum=0))
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=True)
    model.teacher_targets(batch)
    features = model.teacher['backbone'].extract_features(batch.global_views)
    for index in range(2):
        for centering, rows in (
            (model.class_centering, features.cls),
            (model.patch_centering, features.patch[batch.masks]),
        ):
            assert isinstance(centering[index], MeanCentering)
            assert_close(centering[index].centre[0], model.teacher['head'](rows)[index].mean(dim=0))


def test_teacher_temperature_is_read_at_each_step(make_poa):
    model = make_poa(teacher_temp=0.07)
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=False)
    sharpness = []
    for model.teacher_temp in (1.0, 0.07, 0.01):
        sharpness.append(model.teacher_targets(batch).cls[0].amax(dim=1).mean().item())
    assert sharpness == sorted(sharpness) and sharpness[0] < sharpness[-1]


def test_teacher_gets_no_gradient(make_poa):
    model = make_poa()
    model.loss(**make_data())['loss'].backward()
    assert all(not param.requires_grad and param.grad is None for param in model.teacher.parameters())


def test_teacher_stays_in_evaluation_mode(make_poa):
    model = make_poa(backbone=dict(drop_path_rate=0.5))
    model.train()
    assert model.training and model.backbone.training and model.head.training
    assert not any(module.training for module in model.teacher.modules())
    batch = MultiCropBatch.collate(**make_data(), mask_grid=(4, 4), masked=True)
    first, second = model.teacher_targets(batch), model.teacher_targets(batch)
    assert all(map(torch.equal, first.cls + first.patch, second.cls + second.patch))
    first, second = (model.student_output(batch, None, 'global').features for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_init_weights_copies_the_student_to_the_teacher(make_poa):
    model = make_poa()
    before = model.backbone.layers[0].attn.qkv.weight.clone()
    assert not torch.equal(model.teacher['backbone'].layers[0].attn.qkv.weight, before)
    model.init_weights()
    assert not torch.equal(model.backbone.layers[0].attn.qkv.weight, before)
    assert set(model.student) == {'backbone', 'head'}
    for name, module in model.student.items():
        assert_close(dict(model.teacher[name].state_dict()), dict(module.state_dict()), rtol=0, atol=0)
        for ours, theirs in zip(module.parameters(), model.teacher[name].parameters()):
            assert ours.data_ptr() != theirs.data_ptr()


def test_features_are_the_teachers(make_poa):
    model = make_poa()
    image = torch.randn(2, 3, 64, 64)
    assert_close(model(image, mode='tensor'), model.teacher['backbone'](image))
    assert_close(model.extract_feat(image, SUBNET), model.teacher['backbone'](image, SUBNET))
    assert not torch.allclose(model.extract_feat(image)[0], model.backbone(image)[0])


# --- the deck ---


def test_each_step_deals_a_card(make_poa):
    model = make_poa()
    ran = []
    loss_terms = model.loss_terms
    model.loss_terms = lambda batch, targets, subnet: ran.append(subnet) or loss_terms(batch, targets, subnet)
    for _ in range(3):
        model.loss(**make_data())
    assert model.deck.dealt == 3
    other = make_poa().deck
    assert ran == [other.deal() for _ in range(3)]


@pytest.mark.parametrize('sync', [False, True])
def test_each_rank_has_a_deck_of_its_own_unless_told_otherwise(make_poa, monkeypatch, sync):
    first = make_poa(deck=dict(sync=sync)).deck
    monkeypatch.setattr('poa_mm.models.selfsup.poa.get_rank', lambda: 1)
    second = make_poa(deck=dict(sync=sync)).deck
    assert ([first.deal() for _ in range(20)] == [second.deal() for _ in range(20)]) == sync


def test_select_scale_reaches_the_deck(make_poa):
    assert len(make_poa().deck) == 35
    assert len(make_poa(deck=dict(select_scale=1)).deck) == 8


# --- checkpoints ---


def test_checkpoint_keys(make_poa):
    """A contract: the student's names, and the same below ``teacher.``; nothing else."""
    model = make_poa()
    student = {f'{name}.{key}' for name, module in model.student.items() for key in module.state_dict()}
    assert 'backbone.layers.3.ffn.layers.0.0.weight' in student and 'head.prototypes.1.gain' in student
    assert set(model.state_dict()) == student | {f'teacher.{key}' for key in student}
    with_centres = make_poa(centering=dict(type='MeanCentering')).state_dict()
    assert set(with_centres) - set(model.state_dict()) == {
        f'{kind}_centering.{head}.centre' for kind in ('class', 'patch') for head in range(2)
    }


def test_checkpoint_of_another_image_size(make_poa):
    """Student and teacher both resize their position embedding."""
    small, large = make_poa(), make_poa(seed=1, backbone=dict(img_size=96))
    large.load_state_dict(small.state_dict())
    for ours, theirs in ((large.backbone, small.backbone), (large.teacher['backbone'], small.teacher['backbone'])):
        assert_close(ours.pos_embed, resize_pos_embed(theirs.pos_embed, (4, 4), (6, 6), 'bicubic', 1))


# --- training ---


def test_bfloat16_autocast_is_close_to_float32(make_poa):
    data = make_data()
    expected = make_poa().loss(**data)
    model = make_poa()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model.loss(**data)
    losses['loss'].backward()
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert_close(losses, expected, rtol=0.03, atol=0.02)
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.requires_grad)


def test_same_seed_same_losses(make_poa):
    runs = []
    for seed in (0, 0, 1):
        model = make_poa(backbone=dict(drop_path_rate=0.3))
        torch.manual_seed(seed)
        runs.append([model.loss(**make_data())['loss'].item() for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_loss_falls_on_a_fixed_batch(make_poa):
    """Through mmengine's own train step; the space deals 64x3 only, so that steps compare."""
    model = make_poa(backbone=dict(widths=(64,), depths=(3, 4)))
    teacher = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    wrapper = OptimWrapper(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    data = make_data()
    logs = [model.train_step(data, wrapper) for _ in range(8)]
    losses = [log['loss'].item() for log in logs]
    assert losses[-1] < min(losses[:2]) - 0.1
    assert all(value.isfinite() for log in logs for value in log.values())
    assert_close(dict(model.teacher.state_dict()), teacher, rtol=0, atol=0)


def test_logged_terms_are_not_added_to_the_loss(make_poa):
    """mmengine sums every entry with ``loss`` in its name; only one has it."""
    model = make_poa()
    losses = model.loss(**make_data())
    total, log = model.parse_losses(losses)
    assert_close(total, losses['loss'])
    assert set(log) == set(losses)
    assert all(not value.requires_grad for name, value in losses.items() if name != 'loss')


def test_head_takes_the_channels_of_the_backbone(make_poa):
    assert make_poa().head.projectors[0].layers[0].in_features == 64
    built = MODELS.build(dict(type='POA', backbone=BACKBONE, head=HEAD))
    assert type(built) is POA


def test_built_modules_are_taken_as_they_are(make_poa):
    backbone = MODELS.build(BACKBONE)
    head = MODELS.build(dict(HEAD, in_channels=64))
    model = POA(backbone=backbone, head=head)
    assert model.backbone is backbone and model.head is head
    assert model.teacher['backbone'] is not backbone
