"""Shipped configs, shrunk until a test can run them."""


def shrink(cfg, work_dir):
    """A small network, small crops and batches of eight in a config of a ViT; changed in place."""
    cfg.model.backbone.update(
        arch=dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=128),
        **dict(widths=[32, 64], depths=[2], img_size=32, patch_size=8, drop_path_rate=0.0),
    )
    cfg.model.head.update(num_prototypes=[16, 32], hidden_channels=32, bottleneck_channels=16)
    views, mask = cfg.train_dataloader.dataset.pipeline[1:3]
    for view, scale in zip(views.transforms, (32, 32, 16)):
        view[0].scale = scale
    views.num_views, mask.grid = [1, 1, 2], 4
    cfg.train_dataloader.update(batch_size=8, num_workers=0)
    cfg.work_dir = str(work_dir)
    cfg.log_level, cfg.optim_wrapper.type = 'ERROR', 'POAOptimWrapper'
    cfg.optim_wrapper.pop('dtype')
    cfg.vis_backends, cfg.visualizer = None, None
