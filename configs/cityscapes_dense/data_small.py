# Batches of the small variants: four images, loaded in the training process.
_base_ = ["./data.py"]

train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(_delete_=True, type="InfiniteSampler", shuffle=True),
)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader

sync_bn = None  # PyTorch synchronises norms on GPUs alone
