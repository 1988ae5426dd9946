"""POA, ViT-L/16 supernet of 143 subnets, ImageNet-22K from tar shards, 32 GPUs.

    python tools/dataset_converters/to_shards.py IMAGENET22K_FOLDER -o data/imagenet22k
    NNODES=4 NODE_RANK=... MASTER_ADDR=... tools/dist_train.sh configs/poa/vitl_in22k.py 32

Not a recipe of the paper, which stops at ImageNet-1K: it is ours, has not been run, and no score is known. The schedule
is the paper's in samples: as many images are seen as in 346 epochs of ImageNet-1K, 443 million, which is 31 passes over
the 14.2 million of ImageNet-22K; warm-up, ramps and batch are the same, too. The shards are those of `to_shards.py`;
for others, `--cfg-options train_dataloader.dataset.shards=...`. k-NN is that of ImageNet-1K.
"""

_base_ = 'vitl_in1k.py'

# The recipe is that of the base: its epochs are of the 1,281,167 images of ImageNet-1K, whatever is read.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='TarImages',
        data_root='data/imagenet22k',
        shards='train-{000000..001419}.tar',
        with_label=False,
        pipeline=_base_.train_pipeline,
    ),
)
