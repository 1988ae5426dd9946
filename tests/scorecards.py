"""Scorecards without a network: costs that are additive over blocks, scores that grow with them."""

from poa_mm.elastic import Subnet, SubnetSpace


def make_card(space=None, conditions=('torch-cpu-b1',), protocols=('knn',), predicted=(), **entries):
    """A scorecard of ``space``, whose ``predicted`` subnets were not measured."""
    space = space or SubnetSpace([48, 64, 80, 96], [3, 4, 5, 6], {'tiny': '48x3', 'large': '96x6'})
    return dict(
        format=1,
        poa_mm='0',
        checkpoint='supernet.pth',
        checkpoint_sha256='0' * 64,
        family='ElasticVisionTransformer',
        space=space.describe(),
        image_size=[8, 8],
        machine=dict(processor='a processor', torch='2'),
        threads=1,
        rounds=5,
        measure_all=not predicted,
        conditions=list(conditions),
        protocols=list(protocols),
        memory={'torch-cpu': 'weights and tensors'},
        made='2026-01-01T00:00:00+00:00',
        fits={
            condition: dict(latency=dict(count=3, median_error=0.0123, max_error=0.05, kendall_tau=0.987))
            for condition in conditions
            if predicted
        },
        subnets=[_row(space, subnet, conditions, protocols, predicted) for subnet in space],
    ) | dict(entries)


def _row(space, subnet, conditions, protocols, predicted):
    blocks = subnet.depth if isinstance(subnet.depth, int) else sum(subnet.depth)
    params = 1000 * subnet.width + 12 * subnet.width**2 * blocks
    measured = subnet not in map(Subnet.parse, predicted)
    costs = {}
    for index, condition in enumerate(conditions, 1):
        milliseconds = index * (0.5 + 0.0004 * subnet.width * blocks + 0.1 * (subnet.width % 32 == 16))
        costs[condition] = dict(
            kind='measured' if measured else 'predicted',
            median_ms=milliseconds,
            p90_ms=1.1 * milliseconds if measured else None,
            images_per_s=1000 / milliseconds,
            calls=50 if measured else 0,
            peak_memory=4 * params + 10_000 * subnet.width,
        )
    return dict(
        subnet=str(subnet),
        aliases=[name for name, named in space.aliases.items() if named == subnet],
        params=params,
        file_bytes=4 * params + 5000,
        macs=4 * params,
        flops=8 * params,
        # Rounded, so that some are equal.
        scores={name: round(0.9 - 40 / (subnet.width * blocks**0.5) - 0.01 * i, 2) for i, name in enumerate(protocols)},
        costs=costs,
    )
