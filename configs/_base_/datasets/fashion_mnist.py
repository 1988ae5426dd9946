# Fashion-MNIST, grey, 28 x 28 pixels: 60,000 images to train, 10,000 to test. The folder holds the four usual idx
# files, as mmpretrain's `FashionMNIST` reads them. What a config adds: train_dataloader.dataset.pipeline, and of knn.
data_root = '{{$POA_FMNIST:data/fashion_mnist}}'
normalisation = dict(mean=[72.9], std=[90.0])
dataset = dict(type='FashionMNIST', data_root=data_root, download=False)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    drop_last=True,
    sampler=dict(type='ResumableSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(**dataset, split='train'),
)

# --- evaluation ------------------------------------------------------------------------------
knn_loader = dict(batch_size=500, num_workers=0)
knn = dict(
    bank=dict(**knn_loader, dataset=dict(**dataset, split='train')),
    # mmpretrain's class chooses its files by test_mode, whatever the split.
    query=dict(**knn_loader, dataset=dict(**dataset, split='test', test_mode=True)),
    ks=(10, 20),
    temperature=0.07,
)
