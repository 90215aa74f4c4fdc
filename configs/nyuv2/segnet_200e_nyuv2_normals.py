# Baseline of one task for paper A, Table 3: normals. The paper compares with baselines that were
# trained by Adam, and does not give the learning rate; this is that of the code it names.
_base_ = ["./data.py", "../_base_/models/segnet.py", "../_base_/schedules/dense_200e.py"]

model = dict(heads=dict(normals=_base_.normals))
optim_wrapper = dict(tasks=dict(normals="normals.*"))
train_dataloader = dict(dataset=dict(fields=["normals"]))
val_dataloader = dict(dataset=dict(fields=["normals"]))
test_dataloader = val_dataloader
val_evaluator = [_base_.normals_evaluator]
test_evaluator = val_evaluator
